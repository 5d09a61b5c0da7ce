//! Console: an interactive shell takes a long paste and says a lot, and nothing is lost on any kind of serial port; and one on
//! the virtio console knows how large its terminal is.
//!
//! The whole volume is 1 MB of input and 10 MB of output. Where KVM is emulated it is a hundredth of that, unless
//! `VMM_FULL` is in the environment.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, Terminal};

use super::shell::{Port, Shell};
use crate::{Shape, is_full, scaled};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: [Shape; 1] = [Shape::new(KernelFormat::Vmlinux, 1)];
    const OTHER: [Shape; 1] = [Shape::new(KernelFormat::BzImage, 1)];
    crate::trials![
        a_paste_and_a_flood_pass_a_pipe_complete on ONE,
        a_paste_and_a_flood_pass_a_terminal_complete on OTHER,
        a_paste_and_a_flood_pass_a_pty_complete on ONE,
        a_paste_and_a_flood_pass_a_socket_complete on OTHER,
        a_shell_on_the_virtio_console_follows_the_size_of_the_terminal on ONE,
    ]
}

/// What a trial may take. The whole volume takes most of an hour where KVM is emulated.
fn time() -> Duration {
    Duration::from_secs(if is_full() { 4 * 3600 } else { 600 })
}

/// Bytes of a line of what is pasted; a guest's terminal takes lines of 4095.
const PASTED_LINE: usize = 100;
/// Bytes of a line of what the guest says: a number of seven digits, carriage return, line feed.
const SAID_LINE: usize = 9;
/// The first number that it says.
const FIRST: usize = 1_000_000;

/// Ends the input of a program at the beginning of a line.
const END_OF_FILE: [u8; 1] = [4];

/// Text of which no two lines are equal.
fn text(lines: usize) -> Vec<u8> {
    let width = PASTED_LINE - 1;
    (0..lines).flat_map(|line| format!("{line:->width$}\n").into_bytes()).collect()
}

/// The CRC-32 of ISO 8802-3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

fn a_paste_and_a_flood_pass(guest: &LinuxGuest, port: Port) -> Result<()> {
    let mut shell = Shell::start(guest, "", port, time())?;
    // Where the host is emulated, its CPU may be somebody else's for a minute; what the guest's kernel says of that comes in between.
    shell.answer("echo 0 >/proc/sys/kernel/watchdog")?;
    pasted(&mut shell)?;
    flooded(&mut shell)?;
    shell.types("poweroff -f\n")?;
    shell.into_vm().wait()?.ensure_code(0)?;
    Ok(())
}

/// Pastes text into a program that reads it line by line, as it is echoed.
fn pasted(shell: &mut Shell) -> Result<()> {
    let text = text(scaled(1 << 20) / PASTED_LINE);
    shell.types("echo rea''dy; cat >/tmp/pasted; echo ta''ken\n")?;
    shell.wait_for("ready")?;
    let expected = format!("{:08x} {}", crc32(&text), text.len());
    shell.types(text)?;
    shell.types(END_OF_FILE)?;
    shell.wait_for("taken")?;
    let arrived = shell.answer("echo $(crc32 </tmp/pasted; wc -c </tmp/pasted)")?;
    ensure!(arrived == expected, "{arrived:?} arrived instead of {expected:?}");
    Ok(())
}

/// Has the guest say one number after the other.
fn flooded(shell: &mut Shell) -> Result<()> {
    let lines = scaled(10 << 20) / SAID_LINE;
    let last = FIRST + lines - 1;
    shell.types(format!("echo from''here; seq {FIRST} {last}; echo to''here\n"))?;
    shell.wait_for("fromhere\r\n")?;
    let said = shell.wait_for("tohere\r\n")?;
    let expected: Vec<u8> = (FIRST..=last).flat_map(|number| format!("{number}\r\n").into_bytes()).collect();
    let equal = said.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let other = String::from_utf8_lossy(&said[equal..said.len().min(equal + 200)]);
    ensure!(said == expected, "{} bytes instead of {}, {other:?} at {equal}", said.len(), expected.len());
    Ok(())
}

fn a_paste_and_a_flood_pass_a_pipe_complete(guest: &LinuxGuest) -> Result<()> {
    a_paste_and_a_flood_pass(guest, Port::Pipe)
}

fn a_paste_and_a_flood_pass_a_terminal_complete(guest: &LinuxGuest) -> Result<()> {
    a_paste_and_a_flood_pass(guest, Port::Terminal)
}

fn a_paste_and_a_flood_pass_a_pty_complete(guest: &LinuxGuest) -> Result<()> {
    a_paste_and_a_flood_pass(guest, Port::Pty)
}

fn a_paste_and_a_flood_pass_a_socket_complete(guest: &LinuxGuest) -> Result<()> {
    a_paste_and_a_flood_pass(guest, Port::Socket)
}

fn a_shell_on_the_virtio_console_follows_the_size_of_the_terminal(guest: &LinuxGuest) -> Result<()> {
    let mut terminal = Terminal::new()?;
    terminal.resize(100, 30)?;
    let vm = guest.vm("hvc", "").args("--virtio-console stdio --serial null").deadline(time());
    let vm = vm.through("setsid --ctty").stdin(terminal.end()?).stdout(terminal.end()?).spawn()?;
    terminal.wait_for("# ", time())?;
    terminal.type_keys(b"echo si''ze $(stty size) on $(tty)\n")?;
    terminal.wait_for("size 30 100 on /dev/hvc0", time())?;
    terminal.resize(132, 50)?;
    terminal.type_keys(b"until [ \"$(stty size)\" = '50 132' ]; do sleep 1; done; echo foll''owed\n")?;
    terminal.wait_for("followed", time())?;
    terminal.type_keys(b"poweroff -f\n")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}
