//! Doorbells of a process that has no descriptor left.

use std::sync::Arc;

use vmm_core::fake::FakeVm;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_devices::{Doorbell, DoorbellError};

use crate::held::{alone, descriptors, with_descriptors};

/// Descriptors that are left.
const LEFT: usize = 5;

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
    let _alone = alone();
    let vm = Arc::new(FakeVm::default());
    let before = descriptors();
    for _ in 0..2 {
        let (made, error) = with_descriptors(LEFT, || all_that_can_be(&vm));
        let at = 0xd000_0000 + 4 * LEFT as u64;
        assert!(matches!(error, DoorbellError::NoDescriptor { address, .. } if address == at), "{error:?}");
        assert_eq!((made.len(), vm.doorbells().len()), (LEFT, LEFT));
        drop(made);
        assert_eq!(vm.doorbells(), []);
    }
    assert_eq!(descriptors(), before);
}
