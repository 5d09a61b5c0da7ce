//! The raw baseline's machine: what KVM needs to run a PVH guest, and nothing besides.
//!
//! It makes the ioctls that `vmm-cli run` makes, in the same order, so that the difference between the two is
//! what the program costs and not what KVM costs. The order matters by itself: a memory slot set after the
//! interrupt chip waits for a grace period of several milliseconds.
#![expect(unsafe_code, reason = "the guest's memory is shared with KVM")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_MAX_VCPUS,
    KVM_CAP_NR_MEMSLOTS, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_USER_MEMORY,
    KVM_IRQFD_FLAG_RESAMPLE, KVM_MP_STATE_RUNNABLE, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_pio, kvm_irqfd, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use libc::c_ulong;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_core::seam::{DoorbellAddress, DoorbellSpace};

use crate::bench::raw_mapping::Mapping;
use crate::bench::raw_vcpu::RawVcpu;
use crate::bench::{raw_elf, raw_ioctl as kvm};

const RAM_SIZE: usize = 128 << 20;

/// Below the hole for devices that ends at 4 GiB, where other VMMs have them as well.
const TSS_ADDR: c_ulong = 0xfffb_d000;
const IDENTITY_MAP_ADDR: u64 = 0xfffb_c000;

const SERIAL_GSI: u32 = 4;

const START_INFO_ADDR: u32 = 0x6000;
/// `hvm_start_info` in little-endian words: magic, version 1, the rest zero: no modules, command line or
/// memory map, which the guests of the benchmarks do not look for.
const START_INFO: [u32; 14] = [0x336e_c578, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Why the machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// A system call failed.
    #[error("{what}")]
    System {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The guest is no ELF64 file with a PVH note, or does not fit into the memory.
    #[error("not a PVH guest that fits into {RAM_SIZE} bytes")]
    Guest,
    /// An exit that the guest should not cause.
    #[error("unexpected exit: reason {0}")]
    Exit(u32),
}

impl RawError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// The machine behind its vCPUs; the last of them drops it.
#[derive(Debug)]
pub struct RawMachine {
    // Dropped in this order: the memory is unmapped only after KVM has let go of it.
    _serial_irq: OwnedFd,
    vm: OwnedFd,
    ram: Mapping,
}

impl Drop for RawMachine {
    /// Deletes the memory slot. KVM does so anyway when the VM is closed, but then waits for more grace periods:
    /// closing a VM that still has its slot takes twice as long as this program otherwise runs.
    fn drop(&mut self) {
        // SAFETY: a slot of size 0 names no memory.
        let deleted =
            unsafe { kvm::set_user_memory_region(&self.vm, &kvm_userspace_memory_region::default()) };
        debug_assert!(deleted.is_ok(), "{deleted:?}");
    }
}

impl AsFd for RawMachine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vm.as_fd()
    }
}

/// Makes a machine of 128 MiB and one vCPU that is about to execute the first instruction of `guest`, an ELF64 file with
/// a PVH note.
///
/// # Errors
///
/// The guest is none, or a system call fails.
pub fn boot(guest: &Path) -> Result<RawVcpu, RawError> {
    let kvm = open_kvm().map_err(RawError::system("open of /dev/kvm"))?;
    let (machine, entry) = create_machine(&kvm, guest)?;
    create_vcpu(&kvm, &machine, 0, entry)
}

/// The same with `cpus` vCPUs, all of which are about to execute the first instruction.
///
/// # Errors
///
/// As [`boot`].
pub fn boot_smp(guest: &Path, cpus: u32) -> Result<Vec<RawVcpu>, RawError> {
    let kvm = open_kvm().map_err(RawError::system("open of /dev/kvm"))?;
    let (machine, entry) = create_machine(&kvm, guest)?;
    (0..cpus).map(|index| create_vcpu(&kvm, &machine, index, entry)).collect()
}

fn create_machine(kvm: &File, guest: &Path) -> Result<(Arc<RawMachine>, u32), RawError> {
    let (vm, mut ram) = create_vm(kvm).map_err(RawError::system("making the VM"))?;
    let serial_irq = create_irqchip(&vm).map_err(RawError::system("making the interrupt chip"))?;
    let file = fs::read(guest).map_err(RawError::system("read of the guest"))?;
    let entry = load(&file, &mut ram).ok_or(RawError::Guest)?;
    Ok((Arc::new(RawMachine { _serial_irq: serial_irq, vm, ram }), entry))
}

fn create_vcpu(kvm: &File, machine: &Arc<RawMachine>, index: u32, entry: u32) -> Result<RawVcpu, RawError> {
    let vcpu = RawVcpu::create(kvm, machine, index).map_err(RawError::system("making the vCPU"))?;
    let set_up =
        set_cpuid(kvm, &vcpu).and_then(|()| set_msrs(&vcpu)).and_then(|()| set_registers(&vcpu, entry));
    set_up.map_err(RawError::system("setting the vCPU up"))?;
    Ok(vcpu)
}

/// The VM descriptor and the memory of a machine whose vCPU runs on another thread.
#[derive(Debug)]
pub struct RawHandle(Arc<RawMachine>);

impl RawHandle {
    /// Those of `vcpu`'s machine.
    #[must_use]
    pub fn of(vcpu: &RawVcpu) -> Self {
        Self(Arc::clone(&vcpu.machine))
    }

    /// Connects a new eventfd to `gsi`, with a resample descriptor if there is to be one.
    ///
    /// # Errors
    ///
    /// A system call fails.
    pub fn irqfd(&self, gsi: u32, resample: Option<&EventFd>) -> io::Result<EventFd> {
        let raised = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let fd = |fd: &EventFd| fd.as_fd().as_raw_fd().cast_unsigned();
        let request = kvm_irqfd {
            fd: fd(&raised),
            gsi,
            flags: if resample.is_some() { KVM_IRQFD_FLAG_RESAMPLE } else { 0 },
            resamplefd: resample.map_or(0, fd),
            ..Default::default()
        };
        kvm::IRQFD.call(&self.0, &request)?;
        Ok(raised)
    }

    /// Has KVM signal `fd` at each write that matches `address`.
    ///
    /// # Errors
    ///
    /// The ioctl fails.
    pub fn ioeventfd(&self, address: &DoorbellAddress, fd: &EventFd) -> io::Result<()> {
        let mut flags = 0;
        if address.space == DoorbellSpace::Pio {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if address.datamatch.is_some() {
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        let request = kvm_ioeventfd {
            datamatch: address.datamatch.unwrap_or(0),
            addr: address.address,
            len: address.width,
            fd: fd.as_fd().as_raw_fd(),
            flags,
            ..Default::default()
        };
        kvm::IOEVENTFD.call(&self.0, &request).map(drop)
    }

    /// Replaces the routing table.
    ///
    /// # Errors
    ///
    /// The ioctl fails.
    pub fn set_routes(&self, table: &kvm::RoutingTable) -> io::Result<()> {
        kvm::SET_GSI_ROUTING.call(&self.0, table).map(drop)
    }

    /// The aligned word at `address` of the guest's memory as it is now; 0 outside of it.
    pub fn word(&self, address: usize) -> u32 {
        self.atomic(address).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets the aligned word at `address` of the guest's memory; nothing outside of it.
    pub fn set_word(&self, address: usize, value: u32) {
        if let Some(word) = self.atomic(address) {
            word.store(value, Ordering::Release);
        }
    }

    fn atomic(&self, address: usize) -> Option<&AtomicU32> {
        if !address.is_multiple_of(4) || address >= RAM_SIZE {
            return None;
        }
        // SAFETY: the word is within the mapping.
        let word = unsafe { self.0.ram.start().add(address) };
        // SAFETY: it is aligned, stays mapped as long as `self`, to which the result is bound, and nobody has another kind
        // of reference to it: the guest that shares it is no part of this program.
        Some(unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) })
    }
}

fn open_kvm() -> io::Result<File> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    if kvm::GET_API_VERSION.call(&kvm, 0)? != 12 {
        return Err(io::Error::other("API version is not 12"));
    }
    let needed = [
        KVM_CAP_IRQCHIP,
        KVM_CAP_USER_MEMORY,
        KVM_CAP_SET_TSS_ADDR,
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        KVM_CAP_NR_MEMSLOTS,
        KVM_CAP_MAX_VCPUS,
        KVM_CAP_IRQFD,
        KVM_CAP_IOEVENTFD,
        KVM_CAP_IMMEDIATE_EXIT,
    ];
    for capability in needed {
        if kvm::CHECK_EXTENSION.call(&kvm, capability.into())? == 0 {
            return Err(io::Error::other(format!("capability {capability} is missing")));
        }
    }
    Ok(kvm)
}

fn create_vm(kvm: &File) -> io::Result<(OwnedFd, Mapping)> {
    let vm = owned(kvm::CREATE_VM.call(kvm, 0)?);
    kvm::SET_TSS_ADDR.call(&vm, TSS_ADDR)?;
    kvm::SET_IDENTITY_MAP_ADDR.call(&vm, &IDENTITY_MAP_ADDR)?;
    let ram = Mapping::anonymous(RAM_SIZE)?;
    let slot = kvm_userspace_memory_region {
        memory_size: RAM_SIZE as u64,
        userspace_addr: ram.start().as_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: `RawMachine` unmaps the memory after it has closed vCPU and VM, and lends nothing of it while the
    // vCPU runs.
    unsafe { kvm::set_user_memory_region(&vm, &slot) }?;
    Ok((vm, ram))
}

/// Makes the in-kernel interrupt chip and gives the eventfd that raises the serial port's line.
fn create_irqchip(vm: &OwnedFd) -> io::Result<OwnedFd> {
    kvm::CREATE_IRQCHIP.call(vm, 0)?;
    // SAFETY: eventfd takes two integers.
    let raised = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if raised < 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = owned(raised);
    let fd = raised.as_raw_fd().cast_unsigned();
    kvm::IRQFD.call(vm, &kvm_irqfd { fd, gsi: SERIAL_GSI, ..Default::default() })?;
    Ok(raised)
}

/// Copies the guest and `hvm_start_info` into its memory, which is zero, and gives the guest's entry.
fn load(file: &[u8], ram: &mut Mapping) -> Option<u32> {
    let image = raw_elf::parse(file)?;
    for (address, content) in image.segments {
        ram.get(usize::try_from(address).ok()?, content.len())?.copy_from_slice(content);
    }
    for (target, word) in
        ram.get(START_INFO_ADDR as usize, size_of_val(&START_INFO))?.chunks_mut(4).zip(START_INFO)
    {
        target.copy_from_slice(&word.to_le_bytes());
    }
    Some(image.entry)
}

/// CPUID as the host supports it.
fn set_cpuid(kvm: &File, vcpu: &RawVcpu) -> io::Result<()> {
    let mut cpuid = kvm::CpuidTable::new();
    kvm::GET_SUPPORTED_CPUID.call(kvm, &mut cpuid)?;
    kvm::SET_CPUID2.call(vcpu, &cpuid)?;
    Ok(())
}

/// What firmware leaves behind: fast string operations, and memory write-back by default.
fn set_msrs(vcpu: &RawVcpu) -> io::Result<()> {
    let msrs = [(MSR_IA32_MISC_ENABLE, 1 | 1 << 11 | 1 << 12), (MSR_MTRR_DEF_TYPE, 1 << 11 | 6)];
    let table =
        kvm::MsrTable::new(msrs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }));
    if usize::try_from(kvm::SET_MSRS.call(vcpu, &table)?) != Ok(msrs.len()) {
        return Err(io::Error::other("an MSR is refused"));
    }
    Ok(())
}

/// The state at a PVH entry: flat 32-bit protected mode, EBX = `hvm_start_info`.
fn set_registers(vcpu: &RawVcpu, entry: u32) -> io::Result<()> {
    let mut sregs = kvm_sregs::default();
    kvm::GET_SREGS.call(vcpu, &mut sregs)?;
    let data = flat_segment(0x10, 0x3);
    sregs = kvm_sregs {
        cs: flat_segment(0x8, 0xb),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        cr0: CR0_PE | CR0_ET,
        ..sregs
    };
    kvm::SET_SREGS.call(vcpu, &sregs)?;
    let regs =
        kvm_regs { rip: entry.into(), rbx: START_INFO_ADDR.into(), rflags: 1 << 1, ..Default::default() };
    kvm::SET_REGS.call(vcpu, &regs)?;
    // All but the first would wait for INIT and SIPI.
    kvm::SET_MP_STATE.call(vcpu, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
    Ok(())
}

/// A present 4 GiB segment of 32-bit code or data.
fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { limit: 0xffff_ffff, selector, type_, present: 1, db: 1, s: 1, g: 1, ..Default::default() }
}

/// Owns a descriptor that a system call has just returned.
pub(super) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what the kernel gave them and keep no copy.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
