//! Hot-plug: disks that come and go while a guest program runs, and what their owner is told.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vmm_devices::virtio::block::{Image, ImageOptions};
use vmm_tests::harness::{
    ControlSocket, Finished, Held, PATIENCE, Qcow2Image, RunningVm, TestVm, rounds, until,
};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_finds_uses_and_gives_back_disks_round_after_round,
        a_guest_that_gives_nothing_back_is_asked_until_it_loses_the_disk,
        every_slot_takes_a_disk_and_one_more_is_refused,
        what_cannot_be_added_or_removed_says_why,
        a_machine_that_is_reset_has_the_disks_that_were_plugged_last,
        fault_d5_the_end_of_the_machine_ends_the_wait_for_its_guest,
        a_disk_that_was_added_changes_and_is_counted_until_it_is_removed,
        a_disk_that_is_added_has_the_format_and_the_backing_file_that_were_said,
    ]
}

const SECTOR: usize = 512;

/// An image that begins with `text`.
fn image(text: &str) -> Result<NamedTempFile> {
    let image = NamedTempFile::new()?;
    let mut contents = vec![0; 4 * SECTOR];
    contents[..text.len()].copy_from_slice(text.as_bytes());
    fs::write(image.path(), contents)?;
    Ok(image)
}

fn add(place: &ControlSocket, image: &Path, more: &str) -> Result<Finished> {
    place.ctl(&format!("device-add --disk path={},format=raw{more}", image.display()))
}

/// The devices that there are.
fn devices(place: &ControlSocket) -> Result<Vec<Value>> {
    let answer = place.ask("devices")?;
    answer["ok"]["devices"].as_array().cloned().with_context(|| answer.to_string())
}

/// Whether somebody has the image.
fn is_free(image: &Path) -> bool {
    Image::open(image, ImageOptions::default()).is_ok()
}

fn start(place: &ControlSocket, program: &str, args: &str) -> Result<RunningVm> {
    let vm = place.start(TestVm::guest(program).args(args))?;
    place.reaches("running")?;
    Ok(vm)
}

fn a_guest_finds_uses_and_gives_back_disks_round_after_round() -> Result<()> {
    let place = ControlSocket::new()?;
    let mut vm = start(&place, "hotplug", "")?;
    vm.wait_for_output("ready\n")?;
    let mut held = None;
    for round in 0..rounds(100) {
        let image = image("data")?;
        // `data` as a number.
        let added = add(&place, image.path(), ",id=hot")?.ensure_code(0)?.text();
        ensure!(added.starts_with("hot is at 00:"), "{added:?}");
        vm.wait_for_lines("data 61746164\n", round + 1)?;
        ensure!(!is_free(image.path()), "the image of a plugged disk is nobody's");
        place.ctl("device-remove hot --limit 1m")?.ensure_code(0)?.ensure_output("hot is removed\n")?;
        ensure!(is_free(image.path()), "round {round}: the image is somebody's after its disk");
        let first = fs::read(image.path())?[..SECTOR].to_vec();
        // The write of the last moment is done, or it is not.
        let old = first.starts_with(b"data") && first[4..].iter().all(|byte| *byte == 0);
        ensure!(old || first == [0; SECTOR], "round {round}: {first:?}");
        vm.wait_for_lines("id ffffffff\n", round + 1)?;
        ensure!(devices(&place)?.is_empty(), "round {round}");
        // The first rounds make threads and memory that stay.
        if round == 2 {
            held = Some(Held::by(vm.process())?);
        }
    }
    held.context("too few rounds")?.is_all_of(vm.process())?;
    // Slot after slot, and from the beginning again.
    let said = vm.stdout();
    let slots: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("added ")).collect();
    let expected: Vec<_> = (0..slots.len()).map(|round| format!("{:08x}", 2_u32 << (round % 31))).collect();
    ensure!(slots == expected, "{slots:?}");
    ensure!(said.matches("id 10421af4\n").count() == slots.len(), "{said}");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_guest_that_gives_nothing_back_is_asked_until_it_loses_the_disk() -> Result<()> {
    let place = ControlSocket::new()?;
    let image = image("data")?;
    let mut vm = place.start(TestVm::guest("hotplug").cmdline("1"))?;
    vm.wait_for_output("ready\n")?;
    add(&place, image.path(), "")?.ensure_code(0)?;
    vm.wait_for_output("data 61746164\n")?;
    for time in 1..=2 {
        let refused = place.ctl("device-remove disk0 --limit 100ms")?.ensure_code(1)?;
        refused.ensure_message(&["the guest has not given disk0 back within 100ms", "does not listen"])?;
        ensure!(devices(&place)?[0]["state"] == "leaving", "{:?}", devices(&place)?);
        vm.wait_for_lines("leaving 00000002\n", time)?;
    }
    ensure!(!is_free(image.path()), "the image was given up");
    place.ctl("device-remove disk0 --force")?.ensure_code(0)?;
    ensure!(is_free(image.path()) && devices(&place)?.is_empty(), "something is left");
    // Asked once more, as the disk has gone; its slot stays empty, as the guest has not given it back.
    vm.wait_for_lines("leaving 00000002\n", 3)?;
    let added = add(&place, image.path(), "")?.ensure_code(0)?.text();
    ensure!(added.starts_with("disk0 is at 00:02.0"), "{added:?}");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn every_slot_takes_a_disk_and_one_more_is_refused() -> Result<()> {
    let place = ControlSocket::new()?;
    let boot = image("boot")?;
    let disk = format!("--disk=path={},format=raw,id=boot", boot.path().display());
    let vm = start(&place, "bench_halt", &format!("--entropy {disk}"))?;
    let images: Vec<_> = (0..30).map(|_| image("more")).collect::<Result<_>>()?;
    for image in &images[..29] {
        add(&place, image.path(), ",engine=threads")?.ensure_code(0)?;
    }
    let refused = add(&place, images[29].path(), "")?.ensure_code(1)?;
    refused.ensure_message(&["every slot of the PCI bus is taken"])?;
    ensure!(is_free(images[29].path()), "a disk that was refused is kept");
    let found = devices(&place)?;
    let slots: Vec<_> = found.iter().filter_map(|device| device["slot"].as_str()).collect();
    let expected: Vec<_> = (1..32).map(|slot| format!("00:{slot:02x}.0")).collect();
    ensure!(slots == expected, "{slots:?}");
    ensure!(found[0]["id"] == "boot" && found[0]["removable"] == true, "{}", found[0]);
    ensure!(found[1]["id"] == "entropy" && found[1]["removable"] == false, "{}", found[1]);
    ensure!(found[2]["id"] == "disk0" && found[30]["id"] == "disk28", "{found:?}");
    for device in found.iter().filter(|device| device["removable"] == true) {
        place
            .ctl(&format!("device-remove {} --force", device["id"].as_str().unwrap_or("-")))?
            .ensure_code(0)?;
    }
    ensure!(devices(&place)?.len() == 1 && is_free(boot.path()), "{:?}", devices(&place)?);
    // Taken away one and all, and given back none.
    add(&place, boot.path(), "")?.ensure_code(1)?.ensure_message(&["every slot"])?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn what_cannot_be_added_or_removed_says_why() -> Result<()> {
    let place = ControlSocket::new()?;
    let (image, other) = (image("data")?, image("more")?);
    let disk = format!("--disk=path={},format=raw,id=root", image.path().display());
    let vm = start(&place, "bench_halt", &format!("--entropy {disk}"))?;
    let before = devices(&place)?;
    let add = |path: &Path, id: &str| json!({ "verb": "device-add", "disk": { "path": path, "format": "raw", "id": id } });
    let ctl = |path: &Path, code: &str| {
        place.ensure_ctl_refused(&format!("device-add --disk path={},format=raw,id=a", path.display()), code)
    };
    let remove = |id: &str| json!({ "verb": "device-remove", "id": id, "limit": "0s" });
    place.ensure_refused(&add(other.path(), "root"), "id-taken")?;
    place.ensure_refused(&add(other.path(), "a b"), "bad-request")?;
    place.ensure_refused(&add(Path::new("data.img"), "a"), "bad-request")?;
    let missing = ctl(Path::new("/nowhere/x"), "bad-disk")?;
    ensure!(missing.contains("/nowhere/x"), "{missing}");
    ctl(Path::new("/dev/null"), "bad-disk")?;
    ctl(Path::new("/"), "bad-disk")?;
    // The disk of this machine, and one that is ours.
    let held = ctl(image.path(), "in-use")?;
    ensure!(held.contains(&format!("is in use by process {} (", vm.process().pid())), "{held}");
    let ours = Image::open(other.path(), ImageOptions::default())?;
    let held = ctl(other.path(), "in-use")?;
    ensure!(held.contains(&format!("is in use by process {} (", std::process::id())), "{held}");
    drop(ours);
    // The monitor opens nothing.
    let unopened = place.ensure_refused(&add(other.path(), "a"), "no-descriptor")?;
    ensure!(unopened.contains(&format!("the image {}", other.path().display())), "{unopened}");
    place.ensure_refused(&remove("nobody"), "unknown-id")?;
    place.ensure_refused(&remove("entropy"), "not-removable")?;
    let silent = place.ensure_refused(&remove("root"), "no-answer")?;
    ensure!(silent.contains("does not listen"), "{silent}");
    ensure!(devices(&place)?.len() == before.len(), "something has changed");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;

    let place = ControlSocket::new()?;
    let vm = start(&place, "bench_halt", "--pci=false --entropy")?;
    place.ensure_refused(&add(image.path(), "a"), "no-bus")?;
    place.ensure_refused(&remove("entropy"), "no-bus")?;
    ensure!(devices(&place)?[0]["slot"].is_null(), "{:?}", devices(&place)?);
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_machine_that_is_reset_has_the_disks_that_were_plugged_last() -> Result<()> {
    let place = ControlSocket::new()?;
    let (root, hot, gone) = (image("root")?, image("hot")?, image("gone")?);
    let disk = format!("--disk=path={},format=raw", root.path().display());
    let vm = start(&place, "bench_halt", &format!("{disk} --on-reset restart"))?;
    add(&place, gone.path(), ",id=gone")?.ensure_code(0)?;
    add(&place, hot.path(), ",id=hot")?.ensure_code(0)?;
    place.ctl("device-remove gone --limit 0s")?.ensure_code(1)?;
    ensure!(!is_free(gone.path()), "let go before the guest has given it back");
    place.ctl("reset")?.ensure_code(0)?;
    until(Instant::now() + PATIENCE, "the next life", || {
        let answer = place.ask("devices")?;
        Ok(answer["ok"]["devices"].as_array().is_some_and(|devices| devices.len() == 2).then_some(()))
    })?;
    let found = devices(&place)?;
    ensure!(found[0]["id"] == "disk0" && found[1]["id"] == "hot", "{found:?}");
    ensure!(found[1]["path"].as_str() == hot.path().to_str(), "{found:?}");
    ensure!(is_free(gone.path()) && !is_free(hot.path()), "other disks than were plugged");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_d5_the_end_of_the_machine_ends_the_wait_for_its_guest() -> Result<()> {
    let place = ControlSocket::new()?;
    let image = image("data")?;
    let vm = start(&place, "bench_halt", "")?;
    add(&place, image.path(), ",id=hot")?.ensure_code(0)?;
    let mut client = place.client()?;
    client.send(b"{\"verb\":\"device-remove\",\"id\":\"hot\",\"limit\":\"1m\"}\n")?;
    until(Instant::now() + PATIENCE, "a device that leaves", || {
        Ok((devices(&place)?[0]["state"] == "leaving").then_some(()))
    })?;
    place.ctl("quit")?.ensure_code(0)?;
    let answer = client.receive()?;
    ensure!(answer["error"]["code"] == "stopping", "{answer}");
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// What is counted of disks.
fn counted(place: &ControlSocket) -> Result<Vec<Value>> {
    let answer = place.ask("stats")?;
    answer["ok"]["disks"].as_array().cloned().with_context(|| answer.to_string())
}

fn a_disk_that_was_added_changes_and_is_counted_until_it_is_removed() -> Result<()> {
    let place = ControlSocket::new()?;
    let root = image("root")?;
    let vm = format!("--disk=path={},format=raw,id=root,read_only", root.path().display());
    let mut vm = place.start(TestVm::guest("hotplug").arg(vm))?;
    vm.wait_for_output("ready\n")?;
    let names = |counted: &[Value]| counted.iter().map(|disk| disk["id"].clone()).collect::<Vec<_>>();
    for (round, how) in [(1, "--limit 1m"), (2, "--force")] {
        let image = image("data")?;
        add(&place, image.path(), ",id=hot,operations=1000000/1s")?.ensure_code(0)?;
        vm.wait_for_lines("data 61746164\n", round)?;
        place.ctl("disk-resize hot --size 1M")?.ensure_code(0)?.ensure_output("hot has 1048576 bytes\n")?;
        ensure!(image.as_file().metadata()?.len() == 1 << 20, "the image is as it was");
        let limits = place.ctl("disk-limits hot --bandwidth 1G/1s")?.ensure_code(0)?;
        limits.ensure_output("bandwidth  1073741824/1s\noperations 1000000/1s\n")?;
        let disks = counted(&place)?;
        ensure!(names(&disks) == ["root", "hot"], "{disks:?}");
        ensure!(disks[1]["monitor"]["reads"].as_u64() >= Some(1), "{}", disks[1]);
        place.ctl(&format!("device-remove hot {how}"))?.ensure_code(0)?;
        ensure!(is_free(image.path()), "the image is somebody's after its disk");
        ensure!(names(&counted(&place)?) == ["root"], "counted after its end");
        for verb in ["disk-resize", "disk-limits"] {
            let message = place.ensure_refused(&json!({ "verb": verb, "disk": "hot" }), "no-such-disk")?;
            ensure!(message == "there is no disk hot; the disks are: root", "{message}");
        }
        place.ctl("disk-resize root")?.ensure_code(0)?;
    }
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_disk_that_is_added_has_the_format_and_the_backing_file_that_were_said() -> Result<()> {
    let place = ControlSocket::new()?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    fs::write(path("raw"), [0; 1 << 16])?;
    Qcow2Image::new(3 << 20).backed_by("raw").write(&path("backed"))?;
    let vm = start(&place, "bench_halt", "")?;
    let add = |disk: Value| json!({ "verb": "device-add", "disk": disk });
    let ctl = |name: &str, more: &str, code: &str| {
        let words = format!("device-add --disk path={},format={more}", path(name).display());
        place.ensure_ctl_refused(&words, code)
    };
    let message = ctl("backed", "qcow2", "bad-disk")?;
    ensure!(message.contains("is used only if the configuration names it too"), "{message}");
    let message = ctl("raw", "qcow2", "bad-disk")?;
    ensure!(message.contains("it does not begin as a qcow2 image does"), "{message}");
    let half = json!({ "path": path("backed"), "format": "qcow2", "backing": path("raw") });
    place.ensure_refused(&add(half), "bad-disk")?;
    let relative =
        json!({ "path": path("backed"), "format": "qcow2", "backing": "raw", "backing_format": "raw" });
    let message = place.ensure_refused(&add(relative), "bad-request")?;
    ensure!(message.contains("the path `raw` is relative"), "{message}");
    let console = json!({ "path": path("raw"), "format": "raw", "id": "console" });
    place.ensure_refused(&add(console), "bad-request")?;
    ensure!(devices(&place)?.is_empty(), "a disk that was refused is kept");

    let [image, base] = ["backed", "raw"].map(path);
    let disk = format!("path={},format=qcow2,backing={}", image.display(), base.display());
    place.ctl(&format!("device-add --disk {disk},backing_format=raw"))?.ensure_code(0)?;
    place.ctl("disk-resize disk0")?.ensure_code(0)?.ensure_output("disk0 has 3145728 bytes\n")?;
    ctl("backed", "raw", "in-use")?;
    ctl("raw", "raw", "in-use")?;
    place.ctl("device-remove disk0 --force")?.ensure_code(0)?;
    ensure!(is_free(&image) && is_free(&base), "an image is somebody's after its disk");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}
