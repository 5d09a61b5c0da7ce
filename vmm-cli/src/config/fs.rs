//! The tables `[[fs]]`: file systems of the host that a guest can mount; and what all devices need that a vhost-user back end serves.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;
use vmm_devices::virtio::vhost_user::FsTag;

use super::keys::{self, Form, Section, key};
use super::settings::{self, SettingsError};
use super::value::{self, ValueError};
use super::{DeviceId, MemoryBacking, VmConfig, memory};

/// The flag that stands for a whole table.
const FLAG: &str = "--fs";

/// The key of its socket.
pub(super) const SOCKET: &str = "fs.socket";

const EXPECTED_TAG: &str = "a name of 1 to 36 bytes";
const EXPECTED_FS: &str = "settings with commas between, such as \"tag=share,socket=/run/share.sock\"";

/// The keys of a table.
pub(super) const SECTION: Section = Section {
    name: "fs",
    keys: &[
        key("tag", FLAG, Form::Text, EXPECTED_TAG),
        key("socket", FLAG, Form::Text, value::EXPECTED_PATH),
    ],
};

/// The name by which a guest mounts a file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match FsTag::new(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(ValueError::Malformed { value: text.to_owned(), expected: EXPECTED_TAG }),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One table `[[fs]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// Its name in the guest.
    #[serde(deserialize_with = "value::from_text")]
    pub tag: Tag,
    /// The socket of the vhost-user back end that serves it.
    #[serde(deserialize_with = "socket")]
    pub socket: PathBuf,
}

impl FromStr for FsConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        settings::parse(&SECTION, EXPECTED_FS, text)
    }
}

fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    value::parse_path(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Two file systems, or a back end and the guest's RAM, that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum FsError {
    #[error("fs.tag ({FLAG}): two file systems are called {tag}; change one")]
    SameTag { tag: Tag },
    #[error("the name {id} is that of a file system; give the disk or the network device another (`id`)")]
    SameId { id: DeviceId },
    #[error("{key}: two devices have the socket {}; each needs a back end of its own", socket.display())]
    SameSocket { key: &'static str, socket: PathBuf },
    #[error(
        "{key}: a vhost-user back end has the guest's RAM in common with the monitor; set {} = memfd, or shared-file=PATH",
        keys::with_flag(memory::BACKING)
    )]
    NotShared { key: &'static str },
}

/// Checks the file systems, and all back ends, of `config`.
pub(super) fn validate(config: &VmConfig) -> Result<(), FsError> {
    let mut tags = HashSet::new();
    if let Some(fs) = config.fs.iter().find(|fs| !tags.insert(&fs.tag)) {
        return Err(FsError::SameTag { tag: fs.tag.clone() });
    }
    let disks = config.disk.iter().enumerate().map(|(place, disk)| disk.id(place));
    let nets = config.net.iter().enumerate().map(|(place, net)| net.id(place));
    let own: Vec<_> = (0..config.fs.len()).map(DeviceId::of_fs).collect();
    if let Some(id) = disks.chain(nets).find(|id| own.contains(id)) {
        return Err(FsError::SameId { id });
    }
    let is_shared = matches!(config.memory.backing, MemoryBacking::Memfd | MemoryBacking::SharedFile(_));
    let mut sockets = HashSet::new();
    for (key, socket) in config.back_ends() {
        if !is_shared {
            return Err(FsError::NotShared { key });
        }
        if !sockets.insert(socket) {
            return Err(FsError::SameSocket { key, socket: socket.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_takes_a_tag_and_a_socket() {
        let fs: FsConfig = "tag=my share,socket=a=b".parse().unwrap();
        assert_eq!((fs.tag.as_str(), fs.socket.to_str()), ("my share", Some("a=b")));
        let long = "x".repeat(37);
        for (text, message) in [
            ("", "\"\" is none of tag, socket"),
            ("tag=a", "missing field `socket`"),
            ("socket=a", "missing field `tag`"),
            ("tag=,socket=a", "\"\" is not a name of 1 to 36 bytes"),
            (&format!("tag={long},socket=a"), "is not a name of 1 to 36 bytes"),
            ("tag=a,socket=", "\"\" is empty"),
            ("tag=a,socket=b,dax", "dax is none of tag, socket"),
        ] {
            let error = text.parse::<FsConfig>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn back_ends_have_shared_memory_and_a_socket_each() {
        let fs = |text: &str| text.parse::<FsConfig>().unwrap();
        let mut config = VmConfig { fs: vec![fs("tag=a,socket=/a")], ..VmConfig::default() };
        let error = validate(&config).unwrap_err().to_string();
        assert!(error.starts_with("fs.socket: a vhost-user back end"), "{error}");
        assert!(error.contains("memory.backing (--memory-backing) = memfd"), "{error}");
        config.memory.backing = MemoryBacking::Memfd;
        validate(&config).unwrap();
        config.disk = vec!["vhost_user=/a".parse().unwrap()];
        let socket = "/a".into();
        assert_eq!(validate(&config).unwrap_err(), FsError::SameSocket { key: SOCKET, socket });
        config.disk = vec!["vhost_user=/b,id=fs0".parse().unwrap()];
        assert_eq!(validate(&config).unwrap_err(), FsError::SameId { id: DeviceId::of_fs(0) });
        config.disk = Vec::new();
        config.fs.push(fs("tag=a,socket=/b"));
        assert_eq!(validate(&config).unwrap_err(), FsError::SameTag { tag: "a".parse().unwrap() });
    }
}
