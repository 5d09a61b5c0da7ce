//! Outside: whose the terminal is, of a monitor whose PID namespace has neither its own process group nor the others (`vmm-cli
//! jail`). There the numbers of both are 0, and a file of the host's `/proc` tells them apart.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Bytes of the file that are read: what is looked for is among the first fields.
const BEGINNING: usize = 256;

/// `/proc/PID/stat` of a process of the same process group and session that is outside.
static STAT: OnceLock<File> = OnceLock::new();

/// From now on `stat`, which is `/proc/PID/stat` of such a process, says whose the terminal is.
pub(crate) fn set_outside(stat: File) {
    // The first one stays; there is one for each process.
    let _ = STAT.set(stat);
}

/// Whether the process group of that process has the terminal. `None`: there is no such process, or it is gone. Safe to call from a
/// signal handler.
pub(super) fn is_foreground() -> Option<bool> {
    let mut text = [0; BEGINNING];
    let length = STAT.get()?.read_at(&mut text, 0).ok()?;
    let (own, foreground) = groups(text.get(..length)?)?;
    Some(own == foreground)
}

/// The process group, and that of the terminal's foreground: the fields 5 and 8 (proc_pid_stat(5)).
fn groups(stat: &[u8]) -> Option<(i32, i32)> {
    // The name of the program may have parentheses and spaces.
    let name_ends = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = stat.get(name_ends..)?.split(|&byte| byte == b' ').skip(1);
    let own = number(fields.nth(2)?)?;
    Some((own, number(fields.nth(2)?)?))
}

fn number(field: &[u8]) -> Option<i32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_are_found_behind_any_name() {
        for name in ["vmm-cli", "a) b", "))) 1 2 3"] {
            let stat = format!("4711 ({name}) S 4700 4711 4699 34816 4712 4194304 100 0");
            assert_eq!(groups(stat.as_bytes()), Some((4711, 4712)), "{stat}");
        }
        assert_eq!(groups(b"1 (init) S 0 1 1 0 -1 4194560"), Some((1, -1)));
        assert_eq!(groups(b"1 (init) S 0 1"), None);
        assert_eq!(groups(b""), None);
    }

    #[test]
    fn this_process_has_a_group() {
        let stat = std::fs::read("/proc/self/stat").unwrap();
        let (own, _) = groups(&stat).unwrap();
        assert_eq!(own, nix::unistd::getpgrp().as_raw());
    }
}
