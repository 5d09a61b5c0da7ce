//! Network devices that come and go while a guest program runs, and what their owner is told. What a guest does with one is in the Linux suite.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use vmm_tests::harness::{ControlSocket, Held, PATIENCE, RunningVm, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_network_that_cannot_be_had_says_why_and_leaves_nothing,
        an_interface_that_is_made_for_a_device_goes_with_it,
        a_socket_device_is_told_of,
    ]
}

fn start(place: &ControlSocket, args: &str) -> Result<RunningVm> {
    let mut vm = place.start(TestVm::guest("bench_halt").args(args))?;
    // Not before has it all that it takes: the kernel makes a thread when the vCPU runs.
    vm.wait_for_output("\x1e")?;
    place.reaches("running")?;
    Ok(vm)
}

/// What the devices are called.
fn names(place: &ControlSocket) -> Result<Vec<String>> {
    let answer = place.ask("devices")?;
    let devices = answer["ok"]["devices"].as_array().with_context(|| answer.to_string())?;
    Ok(devices.iter().filter_map(|device| device["id"].as_str().map(str::to_owned)).collect())
}

fn add(net: &Value) -> Value {
    json!({ "verb": "device-add", "net": net })
}

fn a_network_that_cannot_be_had_says_why_and_leaves_nothing() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = start(&place, "--entropy")?;
    // The allocator has what it keeps after the first time.
    refuse_each(&place)?;
    let before = Held::by(vm.process())?;
    refuse_each(&place)?;
    ensure!(names(&place)? == ["entropy"], "something is left");
    before.is_all_of(vm.process())?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;

    let place = ControlSocket::new()?;
    let vm = start(&place, "--pci=false")?;
    place.ensure_refused(&add(&json!({ "tap": "vmmnosuchtap" })), "no-bus")?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// Asks for networks that cannot be had, and for what a machine without one does not have.
fn refuse_each(place: &ControlSocket) -> Result<()> {
    let missing = place.ensure_ctl_refused("device-add --net tap=vmmnosuchtap", "bad-net")?;
    ensure!(missing.starts_with("there is no interface vmmnosuchtap: make it"), "{missing}");
    let unopened = place.ensure_refused(&add(&json!({ "tap": "vmmnosuchtap" })), "no-descriptor")?;
    ensure!(unopened.contains("for the interface vmmnosuchtap: the monitor opens nothing"), "{unopened}");
    place.ensure_refused(&add(&json!({})), "bad-net")?;
    place.ensure_ctl_refused("device-add --net tap=lo", "bad-net")?;
    place.ensure_ctl_refused("device-add --net fd=77", "bad-net")?;
    let rate = json!({ "tap": "lo", "vhost": true, "receive_frames": "1/1s" });
    let rate = place.ensure_refused(&add(&rate), "bad-net")?;
    ensure!(rate.contains("knows no rates"), "{rate}");
    let back_end = place.ensure_refused(&add(&json!({ "vhost_user": "/nobody" })), "bad-net")?;
    ensure!(back_end.contains("when the monitor starts"), "{back_end}");
    place.ensure_refused(&add(&json!({ "tap": "lo", "fd": 3 })), "bad-request")?;
    place.ensure_refused(&add(&json!({ "tap": "lo", "mac": "no" })), "bad-request")?;
    place.ensure_refused(&add(&json!({ "tap": "lo", "id": "vsock" })), "bad-request")?;
    place.ensure_refused(&add(&json!({ "tap": "lo", "id": "entropy" })), "bad-request")?;
    let limits = json!({ "verb": "net-limits", "net": "net0" });
    let unknown = place.ensure_refused(&limits, "no-such-net")?;
    ensure!(unknown == "there is no network device net0; the machine has none", "{unknown}");
    place.ensure_refused(&json!({ "verb": "vsock" }), "no-vsock").map(drop)
}

/// Where the host does not let one be made there is nothing to be seen.
fn an_interface_that_is_made_for_a_device_goes_with_it() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = start(&place, "--entropy --on-reset restart")?;
    let [first, second] = [1, 2].map(|number| format!("vh{number}-{}", std::process::id()));
    let is_there = |name: &str| Path::new("/sys/class/net").join(name).exists();
    let plug =
        |name: &str| place.ctl(&format!("device-add --net tap={name},create,id={name},transmit_frames=9/1s"));
    let added = plug(&first)?;
    if added.stderr.contains("no permission to create") || added.stderr.contains("cannot open /dev/net/tun") {
        ensure!(names(&place)? == ["entropy"], "something is left");
    } else {
        added.ensure_code(0)?;
        plug(&second)?.ensure_code(0)?;
        // It has no driver, and is asked to give the device back; the next life does not have that.
        place.ctl(&format!("device-remove {first} --limit 0s"))?.ensure_code(1)?;
        let limits =
            place.ctl(&format!("net-limits {second} --transmit-frames 7/1s"))?.ensure_code(0)?.text();
        ensure!(limits.ends_with("transmit_frames    7/1s\n"), "{limits:?}");
        ensure!(is_there(&first) && is_there(&second), "gone too early");
        place.ctl("reset")?.ensure_code(0)?;
        until(Instant::now() + PATIENCE, "the next life", || {
            let answer = place.ask("devices")?;
            Ok(answer["ok"]["devices"].as_array().is_some_and(|devices| devices.len() == 2).then_some(()))
        })?;
        ensure!(names(&place)? == [second.clone(), "entropy".into()], "{:?}", names(&place)?);
        ensure!(!is_there(&first) && is_there(&second), "the wrong one is left");
        let limits = place.ctl(&format!("net-limits {second}"))?.ensure_code(0)?.text();
        ensure!(limits.ends_with("transmit_frames    7/1s\n"), "{limits:?}");
        place.ctl(&format!("device-remove {second} --force"))?.ensure_code(0)?;
        ensure!(!is_there(&second) && names(&place)? == ["entropy"], "something is left");
    }
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_socket_device_is_told_of() -> Result<()> {
    let place = ControlSocket::new()?;
    let path = place.path().with_extension("vsock");
    let vm = start(&place, &format!("--vsock cid=7,path={}", path.display()))?;
    let told = place.ask("vsock")?["ok"].clone();
    ensure!(told["cid"] == 7 && told["vhost"] == false && told["path"] == json!(path), "{told}");
    ensure!(told["counts"]["connections"] == 0 && told["most_connections"].is_number(), "{told}");
    let text = place.ctl("vsock")?.ensure_code(0)?.text();
    ensure!(text.starts_with("cid              7\n") && text.contains("\nconnections      0\n"), "{text}");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}
