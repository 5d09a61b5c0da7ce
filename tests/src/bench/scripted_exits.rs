//! Exits without KVM: decode, run loop and dispatch over a vCPU that plays one exit again and again.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use vmm_core::Deferred;
use vmm_vcpu::fake::Script;
use vmm_vcpu::{ExitHandler, KickTarget, Requests, RunPage, RunVcpu, Shared, VcpuEnd, coarse_now, run};

use crate::bench::buses::{BENCH_MMIO, BENCH_PORT};
use crate::bench::raw_exits::ExitKind;

/// The `KVM_RUN` error that ends a play, one that no guest causes.
pub const OVER: i32 = libc::EBADFD;

/// Kicks of a cell with this target come from the vCPU's own thread, between two entries, or not at all: there
/// is no guest to interrupt.
#[derive(Debug)]
pub struct NoTarget;

impl KickTarget for NoTarget {
    fn arm(&self) {}

    fn signal(&self) {}

    fn arm_own(&self) {}

    fn disarm(&self) -> bool {
        false
    }
}

/// A run page with the exit of `kind` on it, as its guest would cause it.
///
/// # Errors
///
/// No memory for it.
pub fn page(kind: ExitKind) -> io::Result<RunPage> {
    let script = match kind {
        ExitKind::PortWrite => Script::PortWrite { port: BENCH_PORT, size: 1, data: vec![0] },
        ExitKind::PortRead => Script::PortRead { port: BENCH_PORT, size: 1, count: 1 },
        ExitKind::MmioWrite => Script::MmioWrite { address: BENCH_MMIO, data: vec![0; 4] },
        ExitKind::MmioRead => Script::MmioRead { address: BENCH_MMIO, length: 4 },
        ExitKind::StringIn => Script::PortRead { port: BENCH_PORT, size: 1, count: 256 },
    };
    let mut page = RunPage::anonymous()?;
    script.write_to(&mut page);
    Ok(page)
}

/// A handler that does nothing: what is left is the loop.
#[derive(Debug)]
pub struct Nothing;

impl ExitHandler for Nothing {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// A vCPU whose `KVM_RUN` returns at once, always with the same exit.
#[derive(Debug)]
struct OneExit {
    page: RunPage,
    left: u32,
}

impl RunVcpu for OneExit {
    #[inline]
    fn run(&mut self) -> io::Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(io::Error::from_raw_os_error(OVER)),
        }
    }

    #[inline]
    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    fn tell_stopped(&mut self) {}

    #[inline]
    fn now(&self) -> Duration {
        coarse_now()
    }
}

/// The run loop with a handler of exits, for one kind of exit.
pub struct ScriptedLoop<H> {
    vcpu: OneExit,
    handler: H,
    shared: Arc<Shared<OneExit, NoTarget>>,
}

impl<H: ExitHandler> ScriptedLoop<H> {
    /// A vCPU that plays the exit of `kind`, handled by `handler`.
    ///
    /// # Errors
    ///
    /// No memory for the run page.
    pub fn new(kind: ExitKind, handler: H) -> io::Result<Self> {
        Ok(Self {
            vcpu: OneExit { page: page(kind)?, left: 0 },
            handler,
            shared: Arc::new(Shared::new(NoTarget, Requests::none())),
        })
    }

    /// Plays `exits` exits, and says what they took.
    ///
    /// # Errors
    ///
    /// The run loop ends before that.
    pub fn step(&mut self, exits: u32) -> anyhow::Result<Duration> {
        self.vcpu.left = exits;
        let start = Instant::now();
        let end = run(&mut self.vcpu, &self.handler, &self.shared);
        let elapsed = start.elapsed();
        match end {
            VcpuEnd::RunFailed(error) if error.raw_os_error() == Some(OVER) => Ok(elapsed),
            end => bail!("the run loop ended: {end:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use vmm_devices::BusDevice;

    use super::*;
    use crate::bench::buses::Buses;

    /// Counts reads, writes, and the bytes of all.
    #[derive(Default)]
    struct Counter([AtomicU32; 3]);

    impl BusDevice for Counter {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            self.0[0].fetch_add(1, Ordering::Relaxed);
            self.0[2].fetch_add(data.len() as u32, Ordering::Relaxed);
        }

        fn write(&self, _offset: u64, data: &[u8]) {
            self.0[1].fetch_add(1, Ordering::Relaxed);
            self.0[2].fetch_add(data.len() as u32, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_exit_reaches_the_measured_device_once_for_each_element() {
        for (kind, expected) in [
            (ExitKind::PortWrite, [0, 10, 10]),
            (ExitKind::PortRead, [10, 0, 10]),
            (ExitKind::MmioWrite, [0, 10, 40]),
            (ExitKind::MmioRead, [10, 0, 40]),
            (ExitKind::StringIn, [2560, 0, 2560]),
        ] {
            let device = Arc::new(Counter::default());
            let buses = Buses::new(&(Arc::clone(&device) as Arc<dyn BusDevice>)).unwrap();
            let mut play = ScriptedLoop::new(kind, buses).unwrap();
            play.step(7).unwrap();
            play.step(3).unwrap();
            let counted = device.0.each_ref().map(|count| count.load(Ordering::Relaxed));
            assert_eq!(counted, expected, "{kind:?}");
        }
    }

    #[test]
    fn a_request_in_the_way_is_an_error() {
        let mut play = ScriptedLoop::new(ExitKind::PortRead, Nothing).unwrap();
        play.shared.kicks().kick(Requests::STOP);
        assert!(play.step(1).is_err());
    }
}
