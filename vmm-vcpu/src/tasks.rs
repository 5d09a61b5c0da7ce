//! `Tasks`: what others want done on a vCPU's own thread, where its ioctls do not wait for `KVM_RUN`.

use std::collections::VecDeque;

use crate::sync::{Mutex, lock};

/// Something to be done with a vCPU of type `V`.
pub(crate) type Task<V> = Box<dyn FnOnce(&mut V) + Send>;

/// A queue that is open until the vCPU's thread ends.
pub(crate) struct Tasks<V>(Mutex<Option<VecDeque<Task<V>>>>);

impl<V> Tasks<V> {
    /// An open queue without tasks.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(VecDeque::new())))
    }

    /// Appends `task`; dropped at once, unperformed, if the queue is closed.
    pub(crate) fn push(&self, task: Task<V>) {
        if let Some(queue) = lock(&self.0).as_mut() {
            queue.push_back(task);
        }
    }

    /// Takes the oldest task out; it is performed without the lock.
    pub(crate) fn next(&self) -> Option<Task<V>> {
        lock(&self.0).as_mut()?.pop_front()
    }

    /// Closes the queue and drops what is in it: whoever waits for such a task learns that it will not come.
    pub(crate) fn close(&self) {
        drop(lock(&self.0).take());
    }
}

impl<V> std::fmt::Debug for Tasks<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tasks")
    }
}
