//! `LightFence`: a store-load fence of which the frequent half costs nothing, for protocols of other crates.
//!
//! One thread stores A, passes the light half and loads B; another stores B, passes the heavy half and loads A. One of the
//! two sees the other's store. See [`barrier`](crate::barrier).

use crate::barrier::light;
use crate::grace::readers;

/// The light half.
#[derive(Clone, Copy, Debug)]
pub struct LightFence {
    fenced: bool,
}

impl LightFence {
    /// A fence as this process can have it.
    #[must_use]
    pub fn new() -> Self {
        Self { fenced: readers().barrier().readers_are_fenced() }
    }

    /// The compiler's fence, and the processor's only where the kernel has no membarrier(2).
    #[inline]
    pub fn pass(self) {
        light(self.fenced);
    }
}

impl Default for LightFence {
    fn default() -> Self {
        Self::new()
    }
}

/// The heavy half: interrupts every CPU that runs a thread of this process. May sleep for a tenth of a millisecond.
pub fn heavy_fence() {
    readers().barrier().pass();
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn one_of_the_two_sees_the_other() {
        let light = LightFence::new();
        for _ in 0..200 {
            let (a, b, start) = (AtomicBool::new(false), AtomicBool::new(false), Barrier::new(2));
            let (many, one) = thread::scope(|scope| {
                let many = scope.spawn(|| {
                    start.wait();
                    a.store(true, Ordering::Relaxed);
                    light.pass();
                    b.load(Ordering::Relaxed)
                });
                start.wait();
                b.store(true, Ordering::Relaxed);
                heavy_fence();
                let one = a.load(Ordering::Relaxed);
                (many.join().unwrap(), one)
            });
            assert!(many || one);
        }
    }
}
