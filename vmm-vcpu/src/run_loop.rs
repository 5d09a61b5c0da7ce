//! The run loop: enters the guest, sends each exit where it belongs, and listens to requests in between.

use std::io;

use crate::VcpuExit;
use crate::kick::{KickCell, KickTarget, Requests};
use crate::run_page::RunPage;

/// A vCPU that can be run: KVM's, or a scripted one.
pub trait RunVcpu {
    /// Enters the guest; returns at the next exit, which is then on the page.
    fn run(&mut self) -> io::Result<()>;
    /// The run page.
    fn page(&mut self) -> &mut RunPage;
    /// `KVM_RUN` was interrupted, but not by a kick: the process may have been stopped and continued.
    fn interrupted_from_outside(&mut self);
}

/// Where the accesses of a guest go. One handler serves every vCPU of a machine at the same time.
///
/// Port accesses carry `data.len() / size` elements, each of which is an access of its own to the same port.
pub trait ExitHandler: Send + Sync {
    /// Fills `data` with what the guest reads from `port`.
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]);
    /// Takes what the guest writes to `port`.
    fn port_write(&self, port: u16, size: usize, data: &[u8]);
    /// Fills `data` with what the guest reads at the guest-physical `address`.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Takes what the guest writes at the guest-physical `address`.
    fn mmio_write(&self, address: u64, data: &[u8]);
}

/// Why a vCPU's run loop ended.
#[derive(Debug)]
pub enum VcpuEnd {
    /// It was asked to stop.
    Stopped,
    /// The guest ran into a triple fault.
    TripleFault,
    /// The processor refused to enter the guest, for this reason, on this host CPU.
    FailEntry {
        /// The processor's reason.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// KVM gave up on the guest.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Details by suberror.
        data: [u64; 2],
    },
    /// An exit of this number, which nothing asked for.
    UnexpectedExit(u32),
    /// `KVM_RUN` itself failed.
    RunFailed(io::Error),
    /// The thread panicked, with this message.
    Panicked(String),
}

/// Runs `vcpu` until it ends. To be called on the thread that the kicks of `kicks` reach.
pub fn run<V: RunVcpu, H: ExitHandler + ?Sized, T: KickTarget>(
    vcpu: &mut V,
    handler: &H,
    kicks: &KickCell<T>,
) -> VcpuEnd {
    loop {
        match kicks.enter() {
            Ok(()) => {}
            Err(open) if open.contains(Requests::STOP) => return VcpuEnd::Stopped,
            Err(_) => {
                kicks.park_while(|open| open.contains(Requests::PAUSE) && !open.contains(Requests::STOP));
                continue;
            }
        }
        let returned = vcpu.run();
        kicks.leave();
        let end = match returned {
            Ok(()) => dispatch(VcpuExit::decode(vcpu.page()), handler),
            Err(error) => interrupted(vcpu, kicks, error),
        };
        if let Some(end) = end {
            return end;
        }
    }
}

/// Sends one exit where it belongs. `Some`: the guest cannot go on.
#[inline]
fn dispatch<H: ExitHandler + ?Sized>(exit: VcpuExit<'_>, handler: &H) -> Option<VcpuEnd> {
    match exit {
        VcpuExit::PortRead { port, size, data } => handler.port_read(port, size, data),
        VcpuExit::PortWrite { port, size, data } => handler.port_write(port, size, data),
        VcpuExit::MmioRead { address, data } => handler.mmio_read(address, data),
        VcpuExit::MmioWrite { address, data } => handler.mmio_write(address, data),
        VcpuExit::Interrupted => {}
        VcpuExit::Shutdown => return Some(VcpuEnd::TripleFault),
        VcpuExit::FailEntry { reason, cpu } => return Some(VcpuEnd::FailEntry { reason, cpu }),
        VcpuExit::InternalError { suberror, data } => return Some(VcpuEnd::InternalError { suberror, data }),
        VcpuExit::Unexpected(number) => return Some(VcpuEnd::UnexpectedExit(number)),
    }
    None
}

/// Tells a kick from other reasons for which `KVM_RUN` returns an error. `Some`: a real failure.
#[cold]
fn interrupted<V: RunVcpu, T: KickTarget>(
    vcpu: &mut V,
    kicks: &KickCell<T>,
    error: io::Error,
) -> Option<VcpuEnd> {
    match error.raw_os_error() {
        Some(libc::EINTR) => {
            // Cleared before the requests are looked at, which the next entry does.
            if !kicks.acknowledge() {
                vcpu.interrupted_from_outside();
            }
            None
        }
        // A vCPU that waits for INIT and SIPI was woken and must be entered again.
        Some(libc::EAGAIN) => None,
        _ => Some(VcpuEnd::RunFailed(error)),
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::fake::{Script, ScriptedVcpu};

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl KickTarget for Flag {
        fn set_immediate_exit(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
        fn take_immediate_exit(&self) -> bool {
            self.0.swap(false, Ordering::Relaxed)
        }
        fn signal(&self) {}
    }

    /// Records what it is called with; reads give 0x5a.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl ExitHandler for Recorder {
        fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
            data.fill(0x5a);
            self.0.lock().unwrap().push(format!("in {port:#x} {size}x{}", data.len() / size));
        }
        fn port_write(&self, port: u16, size: usize, data: &[u8]) {
            self.0.lock().unwrap().push(format!("out {port:#x} {size} {data:?}"));
        }
        fn mmio_read(&self, address: u64, data: &mut [u8]) {
            data.fill(0x5a);
            self.0.lock().unwrap().push(format!("load {address:#x} {}", data.len()));
        }
        fn mmio_write(&self, address: u64, data: &[u8]) {
            self.0.lock().unwrap().push(format!("store {address:#x} {data:?}"));
        }
    }

    fn play(script: Vec<Script>) -> (VcpuEnd, Vec<String>, ScriptedVcpu) {
        let (mut vcpu, handler) = (ScriptedVcpu::new(script).unwrap(), Recorder::default());
        let end = run(&mut vcpu, &handler, &KickCell::new(Flag::default(), Requests::none()));
        (end, handler.0.into_inner().unwrap(), vcpu)
    }

    #[test]
    fn each_access_reaches_the_handler_with_its_operands() {
        let (end, calls, _) = play(vec![
            Script::PortWrite { port: 0x3f8, size: 1, data: b"hi".to_vec() },
            Script::PortRead { port: 0x60, size: 2, count: 3 },
            Script::MmioWrite { address: 0xd000_0000, data: vec![1, 2, 3, 4] },
            Script::MmioRead { address: 0xd000_0008, length: 8 },
        ]);
        assert!(matches!(end, VcpuEnd::TripleFault));
        assert_eq!(
            calls,
            ["out 0x3f8 1 [104, 105]", "in 0x60 2x3", "store 0xd0000000 [1, 2, 3, 4]", "load 0xd0000008 8"]
        );
    }

    #[test]
    fn eintr_and_eagain_re_enter_and_an_unexplained_eintr_is_told() {
        let (end, calls, vcpu) = play(vec![
            Script::Fails(libc::EINTR),
            Script::Fails(libc::EAGAIN),
            Script::PortRead { port: 1, size: 1, count: 1 },
        ]);
        assert!(matches!(end, VcpuEnd::TripleFault));
        assert_eq!((calls.len(), vcpu.unexplained_interruptions), (1, 1));
    }

    #[test]
    fn fault_d2_a_failing_kvm_run_ends_the_loop_with_its_errno() {
        let (end, ..) = play(vec![Script::Fails(libc::EFAULT)]);
        assert!(matches!(&end, VcpuEnd::RunFailed(e) if e.raw_os_error() == Some(libc::EFAULT)), "{end:?}");
    }

    #[test]
    fn fault_d2_an_exit_nobody_asked_for_ends_the_loop_with_its_number() {
        let (end, ..) = play(vec![Script::Other(77)]);
        assert!(matches!(end, VcpuEnd::UnexpectedExit(77)), "{end:?}");
    }

    #[test]
    fn a_stop_that_came_first_enters_the_guest_not_once() {
        let mut vcpu = ScriptedVcpu::new(vec![Script::PortRead { port: 1, size: 1, count: 1 }]).unwrap();
        let (handler, kicks) = (Recorder::default(), KickCell::new(Flag::default(), Requests::PAUSE));
        kicks.kick(Requests::STOP);
        assert!(matches!(run(&mut vcpu, &handler, &kicks), VcpuEnd::Stopped));
        assert!(handler.0.into_inner().unwrap().is_empty());
    }
}
