//! This project's own parts under the guests of the exit benchmark, for one kind of exit: `Vm`, `AddressSpace`,
//! boot loading, `Vcpu`, the run loop, its kicks, and buses, on the calling thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use vmm_core::Deferred;
use vmm_devices::BusDevice;
use vmm_memory::AddressSpace;
use vmm_vcpu::{ExitHandler, Requests, Shared, Vcpu, VcpuEnd, run};

use crate::bench::buses::{Buses, Status};
use crate::bench::raw_exits::{ExitKind, Step};
use crate::bench::scripted_exits::NoTarget;
use crate::small_machine::SmallMachine;

/// A guest that exits for ever.
pub struct VmmLoop {
    // Dropped in this order: the memory goes after the vCPU.
    vcpu: Vcpu,
    handler: Counted<Vcpu>,
    _memory: AddressSpace,
}

impl VmmLoop {
    /// Makes a machine with the guest of `kind` from the directory `guests`, and `ranges` ranges on each bus.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn new(kind: ExitKind, guests: &Path, ranges: u64) -> anyhow::Result<Self> {
        let (vcpu, memory) = SmallMachine::boot(&kind.guest(guests), 1, 0)?.into_one();
        let device: Arc<dyn BusDevice> = Arc::new(Status::default());
        let buses = Arc::new(Buses::with(ranges, &device).context("buses")?);
        Ok(Self { vcpu, handler: Counted::new(kind, buses), _memory: memory })
    }

    /// Its buses, for those who change them while it runs.
    #[must_use]
    pub fn buses(&self) -> Arc<Buses> {
        Arc::clone(&self.handler.buses)
    }

    /// Runs the guest through `exits` exits, at least one, and goes on from there the next time.
    ///
    /// # Errors
    ///
    /// The vCPU ends, or an exit is of another kind.
    pub fn step(&mut self, exits: u32) -> anyhow::Result<Step> {
        let handler = &self.handler;
        handler.left.store(exits, Ordering::Relaxed);
        handler.bytes.store(0, Ordering::Relaxed);
        let start = Instant::now();
        let end = run(&mut self.vcpu, handler, &handler.shared);
        let elapsed = start.elapsed();
        let VcpuEnd::Stopped = end else {
            bail!("the vCPU ended: {end:?}");
        };
        handler.shared.kicks().withdraw(Requests::STOP);
        ensure!(!handler.stray.load(Ordering::Relaxed), "an exit of another kind came");
        Ok(Step { elapsed, elements: handler.elements(exits) })
    }
}

/// The buses, and a stop after a number of exits.
///
/// The counters are atomics because a handler is shared, and are stored to by plain stores because one vCPU
/// calls this one.
struct Counted<V> {
    buses: Arc<Buses>,
    kind: ExitKind,
    shared: Arc<Shared<V, NoTarget>>,
    left: AtomicU32,
    bytes: AtomicU64,
    stray: AtomicBool,
}

impl<V: 'static> Counted<V> {
    fn new(kind: ExitKind, buses: Arc<Buses>) -> Self {
        Self {
            buses,
            kind,
            shared: Arc::new(Shared::new(NoTarget, Requests::none())),
            left: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
            stray: AtomicBool::new(false),
        }
    }

    /// Counts an exit of a kind that is expected, or not, and asks for the end after the last one.
    #[inline]
    fn count(&self, expected: bool, data: &[u8]) {
        if !expected {
            self.stray.store(true, Ordering::Relaxed);
        }
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + data.len() as u64, Ordering::Relaxed);
        let left = self.left.load(Ordering::Relaxed).saturating_sub(1);
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.shared.kicks().kick(Requests::STOP);
        }
    }

    /// The elements that the last `exits` exits covered; those of a string access are bytes.
    fn elements(&self, exits: u32) -> u64 {
        match self.kind {
            ExitKind::StringIn => self.bytes.load(Ordering::Relaxed),
            _ => exits.into(),
        }
    }
}

impl<V: 'static> ExitHandler for Counted<V> {
    #[inline]
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.buses.port_read(port, size, data);
        self.count(matches!(self.kind, ExitKind::PortRead | ExitKind::StringIn), data);
    }

    #[inline]
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        let deferred = self.buses.port_write(port, size, data);
        self.count(self.kind == ExitKind::PortWrite, data);
        deferred
    }

    #[inline]
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.buses.mmio_read(address, data);
        self.count(self.kind == ExitKind::MmioRead, data);
    }

    #[inline]
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        let deferred = self.buses.mmio_write(address, data);
        self.count(self.kind == ExitKind::MmioWrite, data);
        deferred
    }
}

#[cfg(test)]
mod tests {
    use vmm_vcpu::RunVcpu;

    use super::*;
    use crate::bench::scripted_exits::page;

    /// Plays the exit of a kind for ever.
    struct Endless(vmm_vcpu::RunPage, u32);

    impl RunVcpu for Endless {
        fn run(&mut self) -> std::io::Result<()> {
            self.1 += 1;
            Ok(())
        }

        fn page(&mut self) -> &mut vmm_vcpu::RunPage {
            &mut self.0
        }

        fn tell_stopped(&mut self) {}

        fn now(&self) -> std::time::Duration {
            vmm_vcpu::coarse_now()
        }
    }

    fn counted(kind: ExitKind) -> Counted<Endless> {
        let buses = Buses::new(&(Arc::new(Status::default()) as Arc<dyn BusDevice>)).unwrap();
        Counted::new(kind, Arc::new(buses))
    }

    #[test]
    fn the_loop_stops_after_the_asked_number_of_exits_each_time() {
        let handler = counted(ExitKind::StringIn);
        let mut vcpu = Endless(page(ExitKind::StringIn).unwrap(), 0);
        for exits in [1, 5] {
            vcpu.1 = 0;
            handler.left.store(exits, Ordering::Relaxed);
            handler.bytes.store(0, Ordering::Relaxed);
            assert!(matches!(run(&mut vcpu, &handler, &handler.shared), VcpuEnd::Stopped));
            handler.shared.kicks().withdraw(Requests::STOP);
            assert_eq!((vcpu.1, handler.elements(exits)), (exits, u64::from(exits) * 256));
        }
        assert!(!handler.stray.load(Ordering::Relaxed));
    }

    #[test]
    fn an_exit_of_another_kind_is_noticed() {
        let handler = counted(ExitKind::PortRead);
        handler.left.store(1, Ordering::Relaxed);
        run(&mut Endless(page(ExitKind::PortWrite).unwrap(), 0), &handler, &handler.shared);
        assert!(handler.stray.load(Ordering::Relaxed));
    }
}
