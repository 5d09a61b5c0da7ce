//! Why a back end cannot be had, and what mends that.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::connector::connect_advice;

/// See the message of each.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum VhostUserError {
    #[error("cannot connect to {}{}", path.display(), connect_advice(source, FIRST))]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this process cannot have the connection")]
    Own(#[source] io::Error),
    #[error("the back end has closed the connection")]
    Closed,
    #[error("the back end has not answered within {} s ({step})", time.as_secs())]
    Silent {
        /// What was asked for.
        step: &'static str,
        time: Duration,
    },
    #[error("the back end has not done or not answered as the protocol says ({step})")]
    Broken {
        step: &'static str,
        #[source]
        source: vhost::Error,
    },
    #[error("the back end lacks the feature bits {missing:#x}")]
    Features { missing: u64 },
    #[error("the back end does not tell the configuration of its device (VHOST_USER_PROTOCOL_F_CONFIG)")]
    NoConfig,
    #[error("the back end serves {has} queues, not {wanted}: let it have more, or set `queues`")]
    Queues { has: u64, wanted: usize },
    #[error(
        "guest RAM is not shared with other processes: take `memory.backing` memfd (--memory-backing memfd)"
    )]
    NotShared,
    #[error("the back end takes {limit} regions of guest RAM, not {regions}")]
    Regions { regions: usize, limit: usize },
    #[error("an area of a queue is not in one region of guest RAM")]
    Scattered,
}

/// Who has to be started before it can be connected to.
const FIRST: &str = "the back end first, with this socket";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_mends_it() {
        let refused = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            VhostUserError::Connect { path: "/run/disk.sock".into(), source }.to_string()
        };
        assert_eq!(
            refused(libc::ENOENT),
            "cannot connect to /run/disk.sock: start the back end first, with this socket"
        );
        assert!(refused(libc::EACCES).contains("sudo setfacl"));
        assert_eq!(refused(libc::EMFILE), "cannot connect to /run/disk.sock");
    }
}
