//! A vhost without a kernel, for tests: it notes what it is told.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::{VhostFd, VhostRing};
use crate::sync::lock;

/// What a descriptor was told last, and what it answers.
#[derive(Default)]
struct Told {
    /// First addresses and lengths.
    memory: Vec<(u64, u64)>,
    features: u64,
    rings: Vec<VhostRing>,
    starts: usize,
    /// From where all rings go on.
    base: u16,
    /// How many calls are answered before one is refused.
    refuses_in: Option<usize>,
}

/// A descriptor.
pub(crate) struct FakeFd {
    features: u64,
    told: Mutex<Told>,
    started: Condvar,
}

impl FakeFd {
    /// One with these features.
    pub(crate) fn new(features: u64) -> Arc<Self> {
        Arc::new(Self { features, told: Mutex::default(), started: Condvar::new() })
    }

    /// What it knows of guest memory, and whether it serves rings.
    pub(crate) fn memory(&self) -> Vec<(u64, u64)> {
        lock(&self.told).memory.clone()
    }

    /// The rings that it serves.
    pub(crate) fn rings(&self) -> Vec<VhostRing> {
        lock(&self.told).rings.clone()
    }

    /// With which features it serves them.
    pub(crate) fn served_features(&self) -> u64 {
        lock(&self.told).features
    }

    /// How often it began to.
    pub(crate) fn starts(&self) -> usize {
        lock(&self.told).starts
    }

    /// Waits until it has begun so often.
    pub(crate) fn wait_for_starts(&self, starts: usize) {
        let told = lock(&self.told);
        drop(self.started.wait_while(told, |told| told.starts < starts).unwrap());
    }

    /// Has the rings go on from `base`.
    pub(crate) fn set_base(&self, base: u16) {
        lock(&self.told).base = base;
    }

    /// Refuses the call after `calls` others, once.
    pub(crate) fn refuse_after(&self, calls: usize) {
        lock(&self.told).refuses_in = Some(calls);
    }

    fn answer(&self) -> io::Result<()> {
        let mut told = lock(&self.told);
        match told.refuses_in {
            Some(0) => {
                told.refuses_in = None;
                Err(io::Error::from_raw_os_error(libc::ENOMEM))
            }
            left => {
                told.refuses_in = left.map(|left| left - 1);
                Ok(())
            }
        }
    }
}

impl VhostFd for FakeFd {
    fn features(&self) -> u64 {
        self.features
    }

    fn set_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        self.answer()?;
        let range = |region: &vmm_memory::RamRegion| (region.start_addr().raw_value(), region.len());
        lock(&self.told).memory = memory.iter().map(range).collect();
        Ok(())
    }

    fn start(&self, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()> {
        self.answer()?;
        let mut told = lock(&self.told);
        assert!(told.rings.is_empty(), "it serves rings already");
        let known: Vec<_> = memory.iter().map(|region| region.start_addr().raw_value()).collect();
        assert_eq!(known, told.memory.iter().map(|(start, _)| *start).collect::<Vec<_>>());
        (told.features, told.rings) = (features & self.features, rings.to_vec());
        told.starts += 1;
        self.started.notify_all();
        Ok(())
    }

    fn stop(&self, rings: &[VhostRing]) -> io::Result<Vec<u16>> {
        self.answer()?;
        let mut told = lock(&self.told);
        told.rings.clear();
        Ok(vec![told.base; rings.len()])
    }

    fn set_call(&self, ring: usize, call: &EventFd) -> io::Result<()> {
        self.answer()?;
        let call = Arc::new(call.try_clone()?);
        let mut told = lock(&self.told);
        told.rings
            .iter_mut()
            .filter(|known| known.index == ring)
            .for_each(|known| known.call = Arc::clone(&call));
        Ok(())
    }
}
