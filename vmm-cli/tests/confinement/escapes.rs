//! What somebody who has taken a thread would try.
#![expect(unsafe_code, reason = "system calls that nobody should make")]

use std::ffi::CStr;

use libc::{c_long, c_ulong};

/// One attempt.
pub struct Escape {
    /// What it is, in the name of a trial.
    pub name: &'static str,
    /// The system call, as the message has it.
    pub call: &'static str,
    number: c_long,
    arguments: [Argument; 4],
    /// What the kernel answers a thread that has no filter, but no paths and no capabilities; `None`: that stops others.
    pub without_filters: Option<&'static [i32]>,
    /// The one kind for which it is none.
    pub but_of: Option<&'static str>,
}

enum Argument {
    Number(c_ulong),
    Text(&'static CStr),
}

use Argument::{Number, Text};

const NONE: Argument = Number(0);
const HERE: Argument = Number(libc::AT_FDCWD as c_ulong);
/// `KVM_CREATE_VM`.
const CREATE_VM: c_ulong = 0xae01;
const PAGE: c_ulong = 4096;
const EXECUTABLE: c_ulong = (libc::PROT_READ | libc::PROT_EXEC) as c_ulong;
/// The process that connects to sockets for all others.
const OPENER: Option<&str> = Some("opener");
const UNIX_STREAM: c_ulong = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as c_ulong;
/// Landlock's refusal, and that of a missing capability.
const REFUSED: Option<&[i32]> = Some(&[libc::EACCES]);
const NOT_PERMITTED: Option<&[i32]> = Some(&[libc::EPERM]);

/// All of them.
pub static ESCAPES: &[Escape] = &[
    Escape {
        name: "open_a_file",
        call: "openat",
        number: libc::SYS_openat,
        arguments: [HERE, Text(c"/etc/passwd"), Number(libc::O_RDONLY as c_ulong), NONE],
        without_filters: REFUSED,
        but_of: None,
    },
    Escape {
        name: "write_outside",
        call: "openat",
        number: libc::SYS_openat,
        arguments: [
            HERE,
            Text(c"/tmp/vmm-escaped"),
            Number((libc::O_WRONLY | libc::O_CREAT) as c_ulong),
            Number(0o600),
        ],
        without_filters: REFUSED,
        but_of: None,
    },
    Escape {
        name: "execute",
        call: "execve",
        number: libc::SYS_execve,
        arguments: [Text(c"/bin/true"), NONE, NONE, NONE],
        without_filters: REFUSED,
        but_of: None,
    },
    Escape {
        name: "reach_the_network",
        call: "socket",
        number: libc::SYS_socket,
        arguments: [Number(libc::AF_INET as c_ulong), Number(libc::SOCK_STREAM as c_ulong), NONE, NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "have_a_socket_of_the_host",
        call: "socket",
        number: libc::SYS_socket,
        arguments: [Number(libc::AF_UNIX as c_ulong), Number(UNIX_STREAM), NONE, NONE],
        without_filters: None,
        but_of: OPENER,
    },
    Escape {
        name: "send_messages_to_all",
        call: "socket",
        number: libc::SYS_socket,
        arguments: [Number(libc::AF_UNIX as c_ulong), Number(libc::SOCK_DGRAM as c_ulong), NONE, NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "connect",
        call: "connect",
        number: libc::SYS_connect,
        arguments: [NONE, Text(c"\x01"), Number(2), NONE],
        without_filters: None,
        but_of: OPENER,
    },
    Escape {
        name: "go_elsewhere",
        call: "fchdir",
        number: libc::SYS_fchdir,
        arguments: [NONE, NONE, NONE, NONE],
        without_filters: None,
        but_of: OPENER,
    },
    Escape {
        name: "talk_to_the_kernel_by_netlink",
        call: "socket",
        number: libc::SYS_socket,
        arguments: [Number(libc::AF_NETLINK as c_ulong), Number(libc::SOCK_RAW as c_ulong), NONE, NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "trace_another_process",
        call: "ptrace",
        number: libc::SYS_ptrace,
        arguments: [Number(libc::PTRACE_ATTACH as c_ulong), Number(1), NONE, NONE],
        without_filters: NOT_PERMITTED,
        but_of: None,
    },
    Escape {
        name: "map_executable_memory",
        call: "mmap",
        number: libc::SYS_mmap,
        arguments: [
            NONE,
            Number(PAGE),
            Number(EXECUTABLE),
            Number((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as c_ulong),
        ],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "make_memory_executable",
        call: "mprotect",
        number: libc::SYS_mprotect,
        arguments: [NONE, Number(PAGE), Number(EXECUTABLE), NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "create_a_vm",
        call: "ioctl",
        number: libc::SYS_ioctl,
        arguments: [NONE, Number(CREATE_VM), NONE, NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "type_for_its_user",
        call: "ioctl",
        number: libc::SYS_ioctl,
        arguments: [NONE, Number(libc::TIOCSTI), Text(c"x"), NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "kill_another_process",
        call: "kill",
        number: libc::SYS_kill,
        // Signal 0 asks whether it could.
        arguments: [Number(1), NONE, NONE, NONE],
        without_filters: None,
        but_of: None,
    },
    Escape {
        name: "become_somebody_else",
        call: "setuid",
        number: libc::SYS_setuid,
        arguments: [Number(12_345), NONE, NONE, NONE],
        without_filters: NOT_PERMITTED,
        but_of: None,
    },
    Escape {
        name: "make_a_ring",
        call: "io_uring_setup",
        number: libc::SYS_io_uring_setup,
        arguments: [Number(1), NONE, NONE, NONE],
        without_filters: None,
        but_of: Some("nursery"),
    },
    Escape {
        name: "handle_its_own_violation",
        call: "rt_sigaction",
        number: libc::SYS_rt_sigaction,
        arguments: [Number(libc::SIGSYS as c_ulong), NONE, NONE, Number(8)],
        without_filters: None,
        but_of: None,
    },
];

/// Whether the kernel has Landlock.
pub fn has_landlock() -> bool {
    // LANDLOCK_CREATE_RULESET_VERSION
    let flags = 1;
    // SAFETY:
    // - with this flag the kernel makes nothing and reads nothing: it answers with its version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, flags) > 0 }
}

impl Escape {
    /// Makes the attempt. The error of the kernel, 0 for none.
    pub fn attempt(&self) -> i32 {
        make(
            self.number,
            self.arguments.each_ref().map(|argument| match argument {
                Number(number) => *number,
                Text(text) => text.as_ptr().expose_provenance() as c_ulong,
            }),
        )
    }
}

/// Makes a system call that the kernel is to refuse. Its error, 0 for none.
pub fn make(number: c_long, [first, second, third, fourth]: [c_ulong; 4]) -> i32 {
    // SAFETY:
    // - each of the calls either only reads the text that it is given, which has a NUL at its end, or maps fresh memory, or fails
    //   without touching memory: where a rule is broken, what is no condition is no descriptor, no address and no length;
    // - the process ends after it.
    let status = unsafe { libc::syscall(number, first, second, third, fourth, -1_i64, 0_i64) };
    if status < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}
