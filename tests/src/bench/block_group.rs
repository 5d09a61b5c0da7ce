//! `Group`: what the block benchmark measures as a whole or not at all.

use std::fmt;
use std::str::FromStr;

use crate::bench::block_subject::{HOST, SUBJECTS, Subject};

/// The jobs for one number of queues, done by one subject in one round. Written as `ROUND/QUEUES/SUBJECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// From 1.
    pub round: u32,
    /// Queues of the disk.
    pub queues: u32,
    /// Whose guest it is; without one, the host itself.
    pub subject: Option<Subject>,
}

/// There is no such group.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no ROUND/QUEUES/SUBJECT")]
pub struct UnknownGroup(String);

impl Group {
    /// Those of a round with so many queues, in the order in which they are measured: the host first, and of the
    /// others nobody always after the same one.
    #[must_use]
    pub fn all(round: u32, queues: u32) -> Vec<Self> {
        let mut order = SUBJECTS.map(Some);
        order.rotate_left(round as usize % SUBJECTS.len());
        [None].into_iter().chain(order).map(|subject| Self { round, queues, subject }).collect()
    }

    /// The subject's name in the report.
    #[must_use]
    pub fn subject(self) -> &'static str {
        self.subject.map_or(HOST, Subject::name)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.round, self.queues, self.subject())
    }
}

impl FromStr for Group {
    type Err = UnknownGroup;

    fn from_str(text: &str) -> Result<Self, UnknownGroup> {
        let find = || {
            let (round, rest) = text.split_once('/')?;
            let (queues, subject) = rest.split_once('/')?;
            let all = Self::all(round.parse().ok()?, queues.parse().ok()?);
            all.into_iter().find(|group| group.subject() == subject)
        };
        find().ok_or_else(|| UnknownGroup(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_read_as_it_is_written_and_anything_else_is_refused() {
        let names: Vec<_> = Group::all(3, 2).iter().map(Group::to_string).collect();
        assert_eq!(names[0], "3/2/host");
        assert_eq!(names.len(), 1 + SUBJECTS.len());
        for (name, group) in names.iter().zip(Group::all(3, 2)) {
            assert_eq!(name.parse::<Group>().unwrap(), group);
        }
        for wrong in ["", "1", "1/2", "1/2/nobody", "x/1/vmm"] {
            assert!(wrong.parse::<Group>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_host_is_first_and_the_others_rotate() {
        let second = |round| Group::all(round, 1)[1];
        assert_eq!(second(1).subject, Some(SUBJECTS[1]));
        assert_eq!(second(2).subject, Some(SUBJECTS[2]));
        assert!(Group::all(7, 1)[0].subject.is_none());
    }
}
