//! Why the kernel serves no queues here, and what mends that.

use std::io;

/// See the message of each.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum VhostError {
    #[error("cannot open {path}{}", device_advice(path, module, source))]
    Device {
        path: &'static str,
        module: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the descriptor is of something else than {path}")]
    OtherDescriptor { path: &'static str },
    #[error("{path} cannot be set up: {step}")]
    SetUp {
        path: &'static str,
        /// What was asked for.
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel behind {path} is too old: it lacks the feature bits {missing:#x}; leave `vhost` out")]
    Features { path: &'static str, missing: u64 },
    #[error("the CID {cid} is that of another guest of this host: take another one (`cid`)")]
    CidInUse { cid: u32 },
}

fn device_advice(path: &str, module: &str, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            format!(
                ": load the module (`sudo modprobe {module}`), in a container pass the device in \
                 (`--device {path}`), or leave `vhost` out"
            )
        }
        Some(libc::EACCES | libc::EPERM) => {
            format!(": take it (`sudo setfacl -m u:$USER:rw {path}`), or leave `vhost` out")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32) -> String {
        let source = io::Error::from_raw_os_error(errno);
        VhostError::Device { path: "/dev/vhost-net", module: "vhost_net", source }.to_string()
    }

    #[test]
    fn what_is_missing_says_what_mends_it() {
        assert!(refused(libc::ENOENT).contains("`sudo modprobe vhost_net`"));
        assert!(refused(libc::EACCES).contains("`sudo setfacl -m u:$USER:rw /dev/vhost-net`"));
        assert_eq!(refused(libc::EMFILE), "cannot open /dev/vhost-net");
    }
}
