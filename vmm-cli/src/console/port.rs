//! `GuestPort`: the guest's end of a console, as the one sees it who feeds it.

use vmm_devices::legacy::Serial;
use vmm_devices::virtio::console::Console as VirtioConsole;

/// Which of the guest's ports a console belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortKind {
    /// The serial port.
    Serial,
    /// The virtio console.
    Virtio,
}

impl PortKind {
    /// What messages call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial port",
            Self::Virtio => "virtio console",
        }
    }

    /// The flag that says where it ends.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Serial => "--serial",
            Self::Virtio => "--virtio-console",
        }
    }
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// A port of the guest that takes input.
pub(crate) trait GuestPort {
    /// Offers input; returns how many bytes there was room for.
    fn input(&self, bytes: &[u8]) -> usize;
    /// Says how large the terminal is at its other end, if it can be told.
    fn resize(&self, size: TerminalSize);
}

impl GuestPort for Serial {
    fn input(&self, bytes: &[u8]) -> usize {
        Serial::input(self, bytes)
    }

    /// A serial line knows of no size.
    fn resize(&self, _size: TerminalSize) {}
}

impl GuestPort for VirtioConsole {
    fn input(&self, bytes: &[u8]) -> usize {
        VirtioConsole::input(self, bytes)
    }

    fn resize(&self, size: TerminalSize) {
        VirtioConsole::resize(self, size.columns, size.rows);
    }
}
