//! `ControlSocket`: a place for a monitor's control socket, and the ways to ask on it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::running::{Finished, RunningVm};
use super::vm::TestVm;
use super::{monitor, until};

/// For what takes a moment on an idle host: a watchdog, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A path for a control socket, in a directory of its own.
#[derive(Debug)]
pub struct ControlSocket {
    _directory: TempDir,
    path: PathBuf,
}

impl ControlSocket {
    /// A path at which nothing is.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("control");
        Ok(Self { _directory: directory, path })
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts `vm` with its control socket here, and waits until that is served.
    ///
    /// # Errors
    ///
    /// It cannot be started, or is not served in time.
    pub fn start(&self, vm: TestVm) -> Result<RunningVm> {
        let vm = vm.arg("--api-sock").arg(&self.path).spawn()?;
        self.client()?;
        Ok(vm)
    }

    /// A new connection, as soon as somebody listens.
    ///
    /// # Errors
    ///
    /// Nobody listens in time.
    pub fn client(&self) -> Result<ControlClient> {
        let connect = || Ok(UnixStream::connect(&self.path).ok());
        ControlClient::new(until(Instant::now() + PATIENCE, "the control socket", connect)?)
    }

    /// Asks by a connection of its own.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn ask(&self, verb: &str) -> Result<Value> {
        self.client()?.ask_for(verb)
    }

    /// Asks with `request`, whose refusal has this code; what it says.
    ///
    /// # Errors
    ///
    /// There is no answer, or it is another one.
    pub fn ensure_refused(&self, request: &Value, code: &str) -> Result<String> {
        let answer = self.client()?.ask(request)?;
        ensure!(answer["error"]["code"] == code, "{answer} instead of {code}");
        Ok(answer["error"]["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Runs `vmm-cli ctl` with these words, which come to a refusal with this code; what it says.
    ///
    /// # Errors
    ///
    /// It cannot be started, does not end, or comes to something else.
    pub fn ensure_ctl_refused(&self, words: &str, code: &str) -> Result<String> {
        let line = self.ctl(&format!("--json {words}"))?.ensure_code(1)?.text();
        let answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(answer["error"]["code"] == code, "{answer} instead of {code}");
        Ok(answer["error"]["message"].as_str().unwrap_or_default().to_owned())
    }

    /// The state that the status tells.
    ///
    /// # Errors
    ///
    /// There is no answer, or none with a state.
    pub fn state(&self) -> Result<String> {
        let status = self.ask("status")?;
        Ok(status["ok"]["state"].as_str().with_context(|| status.to_string())?.to_owned())
    }

    /// Waits until the status tells this state.
    ///
    /// # Errors
    ///
    /// There is no answer, or the state is another one for too long.
    pub fn reaches(&self, state: &str) -> Result<()> {
        until(Instant::now() + PATIENCE, state, || Ok((self.state()? == state).then_some(())))
    }

    /// Runs `vmm-cli ctl` with these words.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not end.
    pub fn ctl(&self, words: &str) -> Result<Finished> {
        TestVm::program(monitor()).arg("ctl").arg(&self.path).args(words).run()
    }
}

/// One connection.
#[derive(Debug)]
pub struct ControlClient(BufReader<UnixStream>);

impl ControlClient {
    /// Over `stream`, which is connected.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends `bytes`, whatever they are.
    ///
    /// # Errors
    ///
    /// They cannot be sent.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// Sends `bytes`, with `descriptors` beside the first of them.
    ///
    /// # Errors
    ///
    /// They cannot be sent.
    pub fn send_with(&mut self, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
        Ok(vmm_cli::control::descriptors::send(self.0.get_ref(), bytes, descriptors)?)
    }

    /// Asks with `request`, and with `descriptors` beside it.
    ///
    /// # Errors
    ///
    /// They cannot be sent, or there is no answer.
    pub fn ask_with(&mut self, request: &Value, descriptors: &[OwnedFd]) -> Result<Value> {
        self.send_with(format!("{request}\n").as_bytes(), descriptors)?;
        self.receive()
    }

    /// The next answer.
    ///
    /// # Errors
    ///
    /// There is none in time, or it is no JSON.
    pub fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("no answer")?;
        serde_json::from_str(&line).with_context(|| format!("{line:?}"))
    }

    /// Asks for `verb`, with nothing beside it.
    ///
    /// # Errors
    ///
    /// It cannot be sent, or there is no answer.
    pub fn ask_for(&mut self, verb: &str) -> Result<Value> {
        self.ask(&json!({ "verb": verb }))
    }

    /// Asks with `request`.
    ///
    /// # Errors
    ///
    /// It cannot be sent, or there is no answer.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send(format!("{request}\n").as_bytes())?;
        self.receive()
    }
}
