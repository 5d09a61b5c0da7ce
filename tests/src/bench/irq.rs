//! What the interrupt benchmark does to each of its two subjects.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// As the guest `irq_counters` has them.
pub const COUNTERS: usize = 0x9000;
/// How many interrupts the guest has acknowledged.
pub const ENDED: usize = COUNTERS + 4 * 8;
/// Its ports: it is ready; the handler of the level-triggered line has run.
pub const READY_PORT: u16 = 0xe0;
/// See [`READY_PORT`].
pub const SERVED_PORT: u16 = 0xe1;
/// The pins that it has routed.
pub const EDGE_PIN: u32 = 5;
/// See [`EDGE_PIN`].
pub const LEVEL_PIN: u32 = 10;
/// The vector of its first counter; the others follow.
pub const FIRST_VECTOR: u32 = 0x50;
/// The destination of a message: the local APIC of the first CPU.
pub const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
/// Vectors of messages whose routes are changed.
pub const ROUTED: usize = 1000;

/// More than any interrupt takes.
const LONG: Duration = Duration::from_secs(10);

/// A kind of interrupt. Its number is that of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqKind {
    /// A pulse of an edge-triggered line.
    Edge,
    /// A level-triggered line that is high until the handler has run.
    Level,
    /// A message.
    Message,
}

impl IrqKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Edge, Self::Level, Self::Message];

    /// Its vector.
    #[must_use]
    pub fn vector(self) -> u32 {
        FIRST_VECTOR + self as u32
    }
}

/// A machine whose guest counts interrupts.
pub trait Interrupted {
    /// Raises one.
    ///
    /// # Errors
    ///
    /// The subject cannot.
    fn raise(&self, kind: IrqKind) -> Result<()>;
    /// The word at `address` of the guest's memory as it is now.
    ///
    /// # Errors
    ///
    /// There is no memory.
    fn word(&self, address: usize) -> Result<u32>;
    /// Routes [`ROUTED`] messages with data from `data` on, one by one.
    ///
    /// # Errors
    ///
    /// That of KVM.
    fn route_one_by_one(&self, data: u32) -> Result<()>;
    /// The same at once.
    ///
    /// # Errors
    ///
    /// That of KVM.
    fn route_at_once(&self, data: u32) -> Result<()>;
}

/// The time from before an interrupt is raised until its handler has been entered. Waits until the handler has ended.
///
/// # Errors
///
/// It does not come.
pub fn latency(subject: &impl Interrupted, kind: IrqKind) -> Result<Duration> {
    let counter = COUNTERS + 4 * kind as usize;
    let (before, ended) = (subject.word(counter)?, subject.word(ENDED)?);
    let start = Instant::now();
    subject.raise(kind)?;
    while subject.word(counter)? == before {
        ensure!(start.elapsed() < LONG, "{kind:?}: the interrupt does not come");
    }
    let elapsed = start.elapsed();
    while subject.word(ENDED)? == ended {
        ensure!(start.elapsed() < LONG, "{kind:?}: the handler does not end");
    }
    Ok(elapsed)
}

/// The time that `act` takes.
///
/// # Errors
///
/// Its own.
pub fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}
