//! `Roles`: what each of the descriptors is that come with a request to add a device, and those descriptors by what they are.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::arrivals::{Bag, Fault, MOST_DESCRIPTORS};

/// What each descriptor is, by its place among those that were sent, from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Roles {
    /// Of a disk: its image, through the host's page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<usize>,
    /// Of a disk: the same image past the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<usize>,
    /// Of a disk: its backing file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<usize>,
    /// Of a network device: its TAP, one for each pair of queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tap: Vec<usize>,
    /// Of a network device: `/dev/vhost-net`, as often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vhost: Vec<usize>,
    /// Of a network device: a socket through which interfaces are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<usize>,
    /// Of a network device: a socket for news of interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub news: Option<usize>,
}

impl Roles {
    /// The first one that only a network device has.
    pub(super) fn first_of_net(&self) -> Option<&'static str> {
        let named = [
            ("tap", !self.tap.is_empty()),
            ("vhost", !self.vhost.is_empty()),
            ("interfaces", self.interfaces.is_some()),
            ("news", self.news.is_some()),
        ];
        named.into_iter().find_map(|(name, is_there)| is_there.then_some(name))
    }

    /// The first one that only a disk has.
    pub(super) fn first_of_disk(&self) -> Option<&'static str> {
        let named = [("image", self.image), ("direct", self.direct), ("backing", self.backing)];
        named.into_iter().find_map(|(name, place)| place.map(|_| name))
    }
}

/// The descriptors of a device to be added. What is not taken is closed.
#[derive(Debug, Default)]
pub struct Given {
    /// Those of a disk.
    pub disk: DiskFiles,
    /// Those of a network device.
    pub net: NetFiles,
}

/// The descriptors of a disk; see [`Roles`].
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "as in `Roles`")]
pub struct DiskFiles {
    pub image: Option<OwnedFd>,
    pub direct: Option<OwnedFd>,
    pub backing: Option<OwnedFd>,
}

/// The descriptors of a network device; see [`Roles`].
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "as in `Roles`")]
pub struct NetFiles {
    pub tap: Vec<OwnedFd>,
    pub vhost: Vec<OwnedFd>,
    pub interfaces: Option<OwnedFd>,
    pub news: Option<OwnedFd>,
}

/// Why the descriptors of a request are not those that it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GivenError {
    /// A flood.
    #[error("more than {MOST_DESCRIPTORS} descriptors came with the request")]
    TooMany,
    /// This process has no room.
    #[error("the monitor has no room for the descriptors that came with the request (RLIMIT_NOFILE)")]
    Lost,
    /// Nothing needs them.
    #[error("{count} descriptors came with a request that takes none")]
    Unwanted {
        /// How many.
        count: usize,
    },
    /// It has not come.
    #[error("there is no descriptor {place}: {count} came with the request, counted from 0")]
    NotThere {
        /// What was said.
        place: usize,
        /// How many.
        count: usize,
    },
    /// One descriptor is one thing.
    #[error("the descriptor {place} is named twice")]
    Twice {
        /// Which one.
        place: usize,
    },
    /// It has no role.
    #[error("the descriptor {place} is not named in `descriptors`")]
    Unnamed {
        /// Which one.
        place: usize,
    },
}

impl Given {
    /// The descriptors in `bag` by what they are; `None`: the request takes none.
    ///
    /// # Errors
    /// [`GivenError`]; all of them are closed then.
    pub(super) fn of(roles: Option<&Roles>, bag: Bag<OwnedFd>) -> Result<Self, GivenError> {
        match bag.fault {
            Some(Fault::TooMany) => return Err(GivenError::TooMany),
            Some(Fault::Lost) => return Err(GivenError::Lost),
            None => {}
        }
        let count = bag.descriptors.len();
        let Some(roles) = roles else {
            return if count == 0 { Ok(Self::default()) } else { Err(GivenError::Unwanted { count }) };
        };
        let mut all: Vec<_> = bag.descriptors.into_iter().map(Some).collect();
        let mut take = |place: usize| match all.get_mut(place) {
            None => Err(GivenError::NotThere { place, count }),
            Some(descriptor) => descriptor.take().ok_or(GivenError::Twice { place }),
        };
        let Roles { image, direct, backing, tap, vhost, interfaces, news } = roles;
        let mut one = |place: &Option<usize>| place.map(&mut take).transpose();
        let disk = DiskFiles { image: one(image)?, direct: one(direct)?, backing: one(backing)? };
        let (interfaces, news) = (one(interfaces)?, one(news)?);
        let mut several =
            |places: &[usize]| places.iter().map(|place| take(*place)).collect::<Result<Vec<_>, _>>();
        let net = NetFiles { tap: several(tap)?, vhost: several(vhost)?, interfaces, news };
        match all.iter().position(Option::is_some) {
            Some(place) => Err(GivenError::Unnamed { place }),
            None => Ok(Self { disk, net }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bag(count: usize) -> Bag<OwnedFd> {
        let descriptors = (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect();
        Bag { descriptors, fault: None }
    }

    fn roles(text: &str) -> Roles {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_descriptor_is_what_is_said_of_its_place() {
        use std::os::fd::AsRawFd;
        let bag = bag(3);
        let numbers: Vec<_> = bag.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let given = Given::of(Some(&roles(r#"{"image":2,"direct":0,"backing":1}"#)), bag).unwrap();
        let found =
            [given.disk.direct, given.disk.backing, given.disk.image].map(|fd| fd.unwrap().as_raw_fd());
        assert_eq!(found[..], numbers);
        let given = Given::of(Some(&roles(r#"{"tap":[1,0],"vhost":[3,2],"news":4}"#)), self::bag(5)).unwrap();
        assert_eq!((given.net.tap.len(), given.net.vhost.len(), given.net.news.is_some()), (2, 2, true));
        assert!(
            Given::of(Some(&Roles::default()), self::bag(0)).is_ok() && Given::of(None, self::bag(0)).is_ok()
        );
    }

    #[test]
    fn fault_c10_descriptors_that_are_not_as_they_are_said_to_be_are_refused() {
        let refusal = |roles: Option<&Roles>, bag| Given::of(roles, bag).unwrap_err();
        let image = roles(r#"{"image":0}"#);
        assert_eq!(refusal(None, bag(2)), GivenError::Unwanted { count: 2 });
        assert_eq!(refusal(Some(&image), bag(0)), GivenError::NotThere { place: 0, count: 0 });
        assert_eq!(refusal(Some(&image), bag(2)), GivenError::Unnamed { place: 1 });
        assert_eq!(refusal(Some(&roles(r#"{"tap":[0,0]}"#)), bag(1)), GivenError::Twice { place: 0 });
        for (fault, error) in [(Fault::TooMany, GivenError::TooMany), (Fault::Lost, GivenError::Lost)] {
            assert_eq!(refusal(Some(&image), Bag { fault: Some(fault), ..bag(1) }), error);
        }
    }
}
