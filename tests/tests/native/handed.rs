//! Handed over: descriptors that come with requests to add a device, good ones and bad ones, and nobody else's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::libc;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vmm_devices::virtio::block::{Image, ImageOptions};
use vmm_tests::harness::{ControlSocket, Held, RunningVm, TestVm};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_disk_whose_path_leads_nowhere_is_what_was_handed_over,
        fault_c10_what_is_no_disk_is_refused_and_100_times_nothing_is_left,
        fault_c10_descriptors_that_nobody_asked_for_are_refused_and_closed,
        fault_c11_descriptors_of_clients_that_vanish_are_closed,
        a_disk_that_is_a_file_of_the_machine_is_refused,
    ]
}

/// A guest that does nothing.
const HALTS: &str = "bench_halt";

fn image() -> Result<NamedTempFile> {
    let image = NamedTempFile::new()?;
    let mut contents = vec![0; 2048];
    contents[..4].copy_from_slice(b"data");
    fs::write(image.path(), contents)?;
    Ok(image)
}

fn start(place: &ControlSocket, program: &str, args: &str) -> Result<RunningVm> {
    let mut vm = place.start(TestVm::guest(program).args(args))?;
    if program == HALTS {
        // Not before has it all that it takes: the kernel makes a thread when the vCPU runs.
        vm.wait_for_output("\x1e")?;
    }
    place.reaches("running")?;
    Ok(vm)
}

fn read_write(path: &Path) -> Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// Asks to add the disk at `/nowhere`, and `more`, with these descriptors, the first of which is its image.
fn add(place: &ControlSocket, more: &Value, descriptors: &[OwnedFd]) -> Result<Value> {
    let mut disk = json!({ "path": "/nowhere", "format": "raw", "id": "hot" });
    for (key, value) in more.as_object().into_iter().flatten() {
        disk[key] = value.clone();
    }
    let request = json!({ "verb": "device-add", "disk": disk, "descriptors": { "image": 0 } });
    place.client()?.ask_with(&request, descriptors)
}

fn ensure_refused(answer: &Value, code: &str, words: &str) -> Result<()> {
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    ensure!(answer["error"]["code"] == code && message.contains(words), "{answer} without {words:?}");
    Ok(())
}

fn ended(place: &ControlSocket, vm: RunningVm) -> Result<()> {
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_disk_whose_path_leads_nowhere_is_what_was_handed_over() -> Result<()> {
    let place = ControlSocket::new()?;
    let mut vm = start(&place, "hotplug", "")?;
    vm.wait_for_output("ready\n")?;
    let image = image()?;
    let added = add(&place, &json!({}), &[read_write(image.path())?])?;
    ensure!(added["ok"]["path"] == "/nowhere", "{added}");
    vm.wait_for_output("data 61746164\n")?;
    ensure!(Image::open(image.path(), ImageOptions::default()).is_err(), "the image is not locked");
    place.ctl("device-remove hot --limit 1m")?.ensure_code(0)?;
    ensure!(Image::open(image.path(), ImageOptions::default()).is_ok(), "the image is somebody's still");
    ended(&place, vm)
}

fn fault_c10_what_is_no_disk_is_refused_and_100_times_nothing_is_left() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = start(&place, HALTS, "")?;
    let image = image()?;
    let path = image.path();
    let refuse_each = || -> Result<()> {
        let refused = |more: Value, descriptor: OwnedFd, words: &str| {
            ensure_refused(&add(&place, &more, &[descriptor])?, "bad-disk", words)
        };
        refused(json!({}), io::pipe()?.0.into(), "\"/nowhere\" is a FIFO; a disk is")?;
        refused(json!({}), File::open("/")?.into(), "is a directory")?;
        refused(json!({}), UnixStream::pair()?.0.into(), "is a socket")?;
        refused(json!({}), File::open(path)?.into(), "is not for reading and writing")?;
        refused(json!({ "read_only": true }), read_write(path)?, "is not for reading alone")?;
        refused(json!({ "format": "qcow2" }), read_write(path)?, "it does not begin as a qcow2 image does")?;
        let mut how = OpenOptions::new();
        let appends = how.read(true).append(true).open(path)?;
        refused(json!({}), appends.into(), "appends whatever is written")?;
        let mut how = OpenOptions::new();
        let hasty = how.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        refused(json!({}), hasty.into(), "does not wait (O_NONBLOCK)")?;
        let unlocked = read_write(path)?;
        let _ours = Image::open(path, ImageOptions::default())?;
        ensure_refused(&add(&place, &json!({}), &[unlocked])?, "in-use", "is in use by another process")
    };
    // The allocator has what it keeps after the first time.
    refuse_each()?;
    let before = Held::by(vm.process())?;
    for round in 0..12 {
        refuse_each().with_context(|| format!("round {round}"))?;
    }
    before.is_all_of(vm.process())?;
    ensure!(place.ask("devices")?["ok"]["devices"] == json!([]), "something was added");
    ended(&place, vm)
}

fn fault_c10_descriptors_that_nobody_asked_for_are_refused_and_closed() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = start(&place, HALTS, "")?;
    let image = image()?;
    let some = |count: usize| (0..count).map(|_| read_write(image.path())).collect::<Result<Vec<_>>>();
    let refuse_each = || -> Result<()> {
        let status = place.client()?.ask_with(&json!({ "verb": "status" }), &some(2)?)?;
        ensure_refused(&status, "bad-descriptors", "2 descriptors came with a request that takes none")?;
        ensure_refused(
            &add(&place, &json!({}), &some(2)?)?,
            "bad-descriptors",
            "the descriptor 1 is not named",
        )?;
        ensure_refused(&add(&place, &json!({}), &[])?, "bad-descriptors", "there is no descriptor 0")?;
        let direct = add(&place, &json!({ "direct": true }), &some(1)?)?;
        ensure_refused(&direct, "no-descriptor", "the direct descriptor of the image /nowhere")?;
        // A flood, in more than one message.
        let mut client = place.client()?;
        for _ in 0..3 {
            client.send_with(b" ", &some(40)?)?;
        }
        let flood = client.ask(&json!({ "verb": "status" }))?;
        ensure_refused(&flood, "bad-descriptors", "more than 64 descriptors came")?;
        ensure!(client.ask_for("status")?["ok"]["state"] == "running", "the connection is of no more use");
        Ok(())
    };
    refuse_each()?;
    let before = Held::by(vm.process())?;
    for _ in 0..10 {
        refuse_each()?;
    }
    before.is_all_of(vm.process())?;
    ended(&place, vm)
}

fn fault_c11_descriptors_of_clients_that_vanish_are_closed() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = start(&place, HALTS, "")?;
    let image = image()?;
    let vanish = |bytes: &[u8]| place.client()?.send_with(bytes, &[read_write(image.path())?]);
    vanish(b"{\"verb\"")?;
    let before = Held::by(vm.process())?;
    for round in 0..100 {
        vanish(if round % 2 == 0 { b"{\"verb\"" } else { b"{\"verb\":\"status\"}\n" })?;
    }
    before.is_all_of(vm.process())?;
    ensure!(Image::open(image.path(), ImageOptions::default()).is_ok(), "the image is somebody's still");
    ended(&place, vm)
}

fn a_disk_that_is_a_file_of_the_machine_is_refused() -> Result<()> {
    let (place, directory) = (ControlSocket::new()?, tempfile::tempdir()?);
    let (log, alias) = (directory.path().join("log"), directory.path().join("alias"));
    let vm = start(&place, HALTS, &format!("--log-file {}", log.display()))?;
    // However it is called.
    std::os::unix::fs::symlink(&log, &alias)?;
    fs::OpenOptions::new().append(true).open(&log)?.set_len(4096)?;
    let refused = add(&place, &json!({}), &[read_write(&alias)?])?;
    ensure_refused(&refused, "bad-disk", "log.file")?;
    let refused = add(&place, &json!({ "read_only": true }), &[File::open(&log)?.into()])?;
    ensure_refused(&refused, "bad-disk", "log.file")?;
    ended(&place, vm)
}
