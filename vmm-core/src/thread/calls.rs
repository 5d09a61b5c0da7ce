//! `Call`: a system call, and with which arguments it may be made; and the tables that several kinds of threads have.

use libc::{c_int, c_long, c_uint};

use super::requests;

/// One rule of a table: a system call, under conditions that hold together. Several rules for one call are alternatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number on x86-64.
    pub number: c_long,
    /// What must be so.
    pub conditions: [Option<Condition>; 2],
    /// Where it is made, if no trial can have it made: every other rule is used by one.
    pub elsewhere: Option<&'static str>,
}

/// What must be so of an argument. Arguments that the kernel takes as `int` are compared as such: their upper halves are anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is this value, of 32 bits.
    Is {
        /// Which argument, from 0.
        argument: u8,
        /// The value.
        value: u32,
    },
    /// It has none of these bits, of 64.
    Without {
        /// Which argument, from 0.
        argument: u8,
        /// The bits.
        bits: u64,
    },
}

impl Call {
    /// `number`, whatever its arguments.
    #[must_use]
    pub const fn any(number: c_long) -> Self {
        Self { number, conditions: [None; 2], elsewhere: None }
    }

    /// The same, of a call that is made only where no trial comes: `place`.
    #[must_use]
    pub const fn elsewhere(self, place: &'static str) -> Self {
        Self { elsewhere: Some(place), ..self }
    }

    /// The same where `argument` is `value` too.
    #[must_use]
    pub const fn is(self, argument: u8, value: c_int) -> Self {
        self.under(Condition::Is { argument, value: value.cast_unsigned() })
    }

    /// The same where `argument` has none of `bits` too.
    #[must_use]
    pub const fn without(self, argument: u8, bits: c_int) -> Self {
        self.under(Condition::Without { argument, bits: bits.cast_unsigned() as u64 })
    }

    /// `ioctl` with this request.
    #[must_use]
    pub const fn ioctl(request: c_uint) -> Self {
        Self::any(libc::SYS_ioctl).under(Condition::Is { argument: 1, value: request })
    }

    /// `fcntl` with this command.
    #[must_use]
    pub const fn fcntl(command: c_int) -> Self {
        Self::any(libc::SYS_fcntl).is(1, command)
    }

    const fn under(self, condition: Condition) -> Self {
        let conditions = match self.conditions {
            [None, second] => [Some(condition), second],
            [first, _] => [first, Some(condition)],
        };
        Self { conditions, ..self }
    }
}

/// What every thread needs: to wait, to have memory, to know the time, to ring an eventfd (and so to be heard), to end.
pub const EVERY: &[Call] = &[
    Call::any(libc::SYS_futex),
    Call::any(libc::SYS_write),
    Call::any(libc::SYS_close),
    Call::any(libc::SYS_mmap).without(2, libc::PROT_EXEC),
    Call::any(libc::SYS_mprotect).without(2, libc::PROT_EXEC),
    Call::any(libc::SYS_mremap),
    Call::any(libc::SYS_munmap),
    Call::any(libc::SYS_madvise),
    Call::any(libc::SYS_brk),
    Call::any(libc::SYS_clock_gettime).elsewhere("a host whose clock cannot be read without the kernel"),
    Call::any(libc::SYS_clock_nanosleep),
    Call::any(libc::SYS_getrandom),
    Call::any(libc::SYS_sched_yield),
    Call::any(libc::SYS_gettid),
    Call::any(libc::SYS_getpid),
    Call::any(libc::SYS_rt_sigreturn),
    Call::any(libc::SYS_rt_sigprocmask),
    Call::any(libc::SYS_sigaltstack),
    Call::any(libc::SYS_restart_syscall),
    Call::any(libc::SYS_exit),
    Call::any(libc::SYS_exit_group),
];

/// What the standard library asks for at each `close` in a build with debug assertions: whether the descriptor is one.
pub const CHECKED: &[Call] = if cfg!(debug_assertions) { &[Call::fcntl(libc::F_GETFD)] } else { &[] };

/// Of a thread that waits for descriptors.
pub const WAITING: &[Call] =
    &[Call::any(libc::SYS_poll), Call::any(libc::SYS_epoll_wait), Call::any(libc::SYS_read)];

/// Of a thread that makes descriptors which lead nowhere, and hands their ends about.
pub const DESCRIPTORS: &[Call] = &[
    Call::any(libc::SYS_eventfd2),
    Call::any(libc::SYS_epoll_create1),
    Call::any(libc::SYS_epoll_ctl),
    Call::any(libc::SYS_timerfd_create),
    Call::any(libc::SYS_timerfd_settime),
    Call::any(libc::SYS_socketpair),
    Call::any(libc::SYS_dup3),
    Call::fcntl(libc::F_DUPFD_CLOEXEC),
    Call::fcntl(libc::F_GETFL),
    Call::ioctl(requests::FIONBIO),
];

/// Of a thread that replaces published values, and waits until nobody reads the old ones.
pub const PUBLISHING: &[Call] = &[Call::any(libc::SYS_membarrier)];

/// Of a thread that kicks vCPUs.
pub const KICKING: &[Call] = &[Call::any(libc::SYS_tgkill)];

/// Of a thread that shows the guest interrupts and doorbells in other places.
pub const ROUTES: &[Call] = &[
    Call::ioctl(requests::KVM_SET_GSI_ROUTING),
    Call::ioctl(requests::KVM_IRQFD),
    Call::ioctl(requests::KVM_IOEVENTFD),
    Call::ioctl(requests::KVM_SIGNAL_MSI).elsewhere("a host whose KVM has no irqfd"),
    Call::ioctl(requests::KVM_IRQ_LINE).elsewhere("a host whose KVM has no irqfd"),
];

/// Of a thread that looks whether the guest listens to an interrupt.
pub const LOOKING: &[Call] = &[Call::ioctl(requests::KVM_GET_IRQCHIP)];

/// Of a thread that shows the guest memory, or shows it no more.
pub const SLOTS: &[Call] = &[
    Call::ioctl(requests::KVM_SET_USER_MEMORY_REGION),
    Call::ioctl(requests::KVM_GET_DIRTY_LOG),
    Call::ioctl(requests::KVM_CLEAR_DIRTY_LOG),
    Call::ioctl(requests::KVM_RESET_DIRTY_RINGS),
    Call::any(libc::SYS_fallocate),
    Call::any(libc::SYS_mlock2),
];
