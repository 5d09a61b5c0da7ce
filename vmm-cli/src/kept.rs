//! `Kept`: what is behind the devices of one kind, through all lives of a machine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::DeviceId;

/// Something with the name of the device that it is behind.
pub(crate) trait Named {
    /// What that is called.
    fn id(&self) -> &DeviceId;
}

/// What is behind devices, in the order in which a guest finds them.
pub(crate) struct Kept<T>(Mutex<Vec<Entry<T>>>);

struct Entry<T> {
    behind: Arc<T>,
    /// The guest is asked to give the device back: the next life does not have it.
    leaves: bool,
}

impl<T: Named> Kept<T> {
    /// Keeps all of these.
    pub(crate) fn new(all: impl IntoIterator<Item = T>) -> Self {
        let entry = |behind| Entry { behind: Arc::new(behind), leaves: false };
        Self(Mutex::new(all.into_iter().map(entry).collect()))
    }

    /// Those of the machine's next life. What a guest was asked to give back at the end of the last one is let go.
    pub(crate) fn of_next_life(&self) -> Vec<Arc<T>> {
        let mut entries = self.lock();
        entries.retain(|entry| !entry.leaves);
        entries.iter().map(|entry| Arc::clone(&entry.behind)).collect()
    }

    /// Keeps one more.
    pub(crate) fn add(&self, behind: Arc<T>) {
        self.lock().push(Entry { behind, leaves: false });
    }

    /// The guest is asked to give the device `id` back, if it is one of these.
    pub(crate) fn leaves(&self, id: &DeviceId) {
        if let Some(entry) = self.lock().iter_mut().find(|entry| entry.behind.id() == id) {
            entry.leaves = true;
        }
    }

    /// Keeps what is behind `id` no more.
    pub(crate) fn remove(&self, id: &DeviceId) -> Option<Arc<T>> {
        let mut entries = self.lock();
        let at = entries.iter().position(|entry| entry.behind.id() == id)?;
        Some(entries.remove(at).behind)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(DeviceId);

    impl Named for Thing {
        fn id(&self) -> &DeviceId {
            &self.0
        }
    }

    #[test]
    fn a_life_has_what_was_there_last_and_not_what_was_to_leave() {
        let id = DeviceId::of_net;
        let kept = Kept::new([Thing(id(0)), Thing(id(1))]);
        let names = || kept.of_next_life().iter().map(|thing| thing.0.to_string()).collect::<Vec<_>>();
        assert_eq!(names(), ["net0", "net1"]);
        kept.add(Arc::new(Thing(id(2))));
        assert!(kept.remove(&id(0)).is_some() && kept.remove(&id(0)).is_none());
        kept.leaves(&id(1));
        kept.leaves(&id(7));
        assert_eq!(names(), ["net2"]);
        assert!(kept.remove(&id(1)).is_none());
    }
}
