//! The raw baseline of the start-up benchmark: runs a PVH guest on one vCPU until it resets.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use vmm_tests::bench::raw_vcpu::{RawExit, RawVcpu};
use vmm_tests::bench::raw_vm::{self, RawError};

const COM1_DATA: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = 0x3fd;
const TRANSMITTER_EMPTY: u8 = 0x60;
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET_CPU: u8 = 0xfe;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "raw_startup: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let guest: PathBuf = env::args_os().nth(1).context("usage: raw_startup GUEST")?.into();
    let vcpu = raw_vm::boot(&guest)?;
    let thread = thread::Builder::new().name("vcpu0".to_owned()).spawn(|| serve(vcpu))?;
    thread.join().map_err(|_| anyhow::anyhow!("the vCPU thread panicked"))??;
    Ok(())
}

/// Runs the guest and serves COM1 and the keyboard controller until that resets it.
fn serve(mut vcpu: RawVcpu) -> Result<(), RawError> {
    let system = |what| move |source| RawError::System { what, source };
    let mut terminal = io::stdout().lock();
    loop {
        match vcpu.enter() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            entered => entered.map_err(system("KVM_RUN"))?,
        }
        match vcpu.exit() {
            RawExit::Out { port: COM1_DATA, data } => {
                let written = terminal.write_all(data).and_then(|()| terminal.flush());
                written.map_err(system("write to stdout"))?;
            }
            RawExit::Out { port: I8042_COMMAND, data: [I8042_RESET_CPU] } => return Ok(()),
            RawExit::Out { .. } => {}
            RawExit::In { port: COM1_LINE_STATUS, data } => data.fill(TRANSMITTER_EMPTY),
            RawExit::In { data, .. } => data.fill(0),
            RawExit::Other(reason) => return Err(RawError::Exit(reason)),
        }
    }
}
