//! A device whose queues a vhost without a kernel serves, and the vectors that it signals.

use super::*;
use crate::virtio::vhost::testing::FakeFd;
use crate::virtio::vhost::{Backend, VhostMemory};
use crate::virtio::vsock::KernelVsock;

/// A machine with a socket device, and its descriptor.
fn machine() -> (Machine, Arc<FakeFd>) {
    let (fd, followed) = (FakeFd::new(0), VhostMemory::new());
    let backend = Backend::new(vec![Arc::clone(&fd) as _], &followed).unwrap();
    let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
    let device = Arc::new(KernelVsock::new(worker, backend, 3));
    let machine = Machine::with_vectors(device, Arc::default(), TriggeredBy::Kernel);
    machine.memory.add_observer(followed).unwrap();
    (machine, fd)
}

/// Has the driver use the receive queue, and waits until the kernel serves it.
fn serve(machine: &Machine, fd: &FakeFd) {
    let before = fd.starts();
    machine.negotiate();
    machine.set_up(&Driver::new(&machine.memory, 0, 16, RINGS));
    machine.start();
    fd.wait_for_starts(before + 1);
}

/// The kernel interrupts for the receive queue.
fn call(fd: &FakeFd) {
    fd.rings()[0].call.write(1).unwrap();
}

#[test]
fn the_kernel_signals_the_vector_itself_and_a_masked_one_is_pending() {
    let (machine, fd) = machine();
    machine.open_vectors(4, 0x50);
    serve(&machine, &fd);
    call(&fd);
    assert_eq!(machine.interrupts(0x51), 1);
    machine.set_msix(0xc000);
    call(&fd);
    assert_eq!(machine.read::<4>(layout::MSIX_PENDING.start), [2, 0, 0, 0]);
    machine.set_msix(0x8000);
    assert_eq!(machine.interrupts(0x51), 1);
    assert_eq!(machine.read::<4>(layout::MSIX_PENDING.start), [0; 4]);
}

#[test]
fn a_queue_that_gets_another_vector_is_interrupted_by_that() {
    let (machine, fd) = machine();
    machine.open_vectors(4, 0x50);
    serve(&machine, &fd);
    machine.store(QUEUE_VECTOR, 3);
    while machine.interrupts(0x53) == 0 {
        call(&fd);
        std::thread::yield_now();
    }
    // None: the worker passes it on, to nobody.
    machine.store(QUEUE_VECTOR, NO_VECTOR);
    machine.reset();
    assert!(fd.rings().is_empty());
}

#[test]
fn without_msix_the_worker_says_it_in_the_isr_status() {
    let (machine, fd) = machine();
    serve(&machine, &fd);
    call(&fd);
    while machine.read::<1>(layout::ISR.start) != [1] {
        std::thread::yield_now();
    }
    machine.reset();
    // Another driver, which has vectors.
    machine.open_vectors(4, 0x50);
    serve(&machine, &fd);
    call(&fd);
    assert_eq!(machine.interrupts(0x51), 1);
}
