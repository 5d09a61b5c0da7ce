//! Doorbells of a process that has no descriptor left. The limit is the process's, so this test has one of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vmm_core::fake::FakeVm;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_devices::{Doorbell, DoorbellError};

/// Descriptors that are left, without gaps below them.
const LEFT: usize = 5;

fn open_descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// As many doorbells as can be made, each with its address in KVM, and why there are no more.
fn all_that_can_be(vm: &Arc<FakeVm>) -> (Vec<Doorbell>, DoorbellError) {
    let mut made = Vec::new();
    loop {
        let address = 0xd000_0000 + 4 * made.len() as u64;
        match Doorbell::new(Some(Arc::clone(vm) as Arc<dyn DoorbellFds>), address) {
            Ok(doorbell) => {
                let shape =
                    DoorbellAddress { space: DoorbellSpace::Mmio, address, width: 4, datamatch: None };
                if let Err(error) = doorbell.rebind(shape) {
                    return (made, error);
                }
                made.push(doorbell);
            }
            Err(error) => return (made, error),
        }
    }
}

#[test]
fn fault_c1_doorbells_without_descriptors_say_so_and_leave_nothing() {
    let vm = Arc::new(FakeVm::default());
    let before = open_descriptors().unwrap();
    let next = File::open("/proc/self/fd").unwrap();
    let limit = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, next.as_raw_fd() as u64 + LEFT as u64, limit.1).unwrap();
    drop(next);
    for _ in 0..2 {
        let (made, error) = all_that_can_be(&vm);
        let at = 0xd000_0000 + 4 * LEFT as u64;
        assert!(matches!(error, DoorbellError::NoDescriptor { address, .. } if address == at), "{error:?}");
        assert_eq!((made.len(), vm.doorbells().len()), (LEFT, LEFT));
        drop(made);
        assert_eq!(vm.doorbells(), []);
    }
    setrlimit(Resource::RLIMIT_NOFILE, limit.0, limit.1).unwrap();
    assert_eq!(open_descriptors().unwrap(), before);
}
