//! `Consoles`: the consoles of a machine: that of the serial port, and that of the virtio console if there is one.

use std::time::Duration;

use super::{Console, GuestPort, OpenError, Outlets, PortKind};
use crate::config::ConsoleConfig;

/// The open consoles, which outlive the lives of their machine.
#[derive(Debug)]
pub(crate) struct Consoles {
    pub(crate) serial: Console,
    pub(crate) virtio: Option<Console>,
}

impl Consoles {
    /// Opens what `config` names; at most one of them is standard input and output.
    pub(crate) fn open(config: &ConsoleConfig) -> Result<Self, OpenError> {
        let serial = Console::open(&config.serial, PortKind::Serial)?;
        let virtio = config.virtio.as_ref().map(|mode| Console::open(mode, PortKind::Virtio));
        Ok(Self { serial, virtio: virtio.transpose()? })
    }

    /// What the guest's ports are connected to.
    pub(crate) fn outlets(&self) -> Outlets {
        Outlets { serial: self.serial.outlet(), virtio: self.virtio.as_ref().map(Console::outlet) }
    }

    /// Each of them, in the order of [`Machine::ports`](crate::machine::Machine::ports).
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Console> {
        std::iter::once(&self.serial).chain(&self.virtio)
    }

    /// As [`iter`](Self::iter).
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Console> {
        std::iter::once(&mut self.serial).chain(&mut self.virtio)
    }

    /// Tells each of `ports`, which are in the same order, how large its terminal is.
    pub(crate) fn tell_sizes(&self, ports: &[&dyn GuestPort]) {
        self.iter().zip(ports).for_each(|(console, port)| console.tell_size(Some(*port)));
    }

    /// After the process was stopped and continued.
    pub(crate) fn continued(&mut self) {
        self.iter_mut().for_each(Console::continued);
    }

    /// Looks whether the terminal is ours. To be called before each wait.
    pub(crate) fn look_for_terminal(&mut self) {
        self.iter_mut().for_each(Console::look_for_terminal);
    }

    /// How long a wait may last, as far as consoles know.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.iter().filter_map(Console::patience).min()
    }
}
