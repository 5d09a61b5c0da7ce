//! `Table`: everything that has a socket or a port: clients that have not said what they want, connections, and sockets that take
//! what is left of one. By number, by ports, by the moment until which something has to happen, and in the order in which the
//! guest gets their packets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::connection::Connection;
use super::host::Stream;
use super::line::Line;

/// Most connections of any device, those that are about to begin or to end included.
pub const MOST_CONNECTIONS: usize = 4096;

/// Most clients that have not said what they want.
pub const MOST_GREETINGS: usize = 128;

/// Bytes that a connection has room for on this side, as long as there are few; that of all together is bounded.
const LARGE_ROOM: u32 = 256 << 10;
const SMALL_ROOM: u32 = 32 << 10;
const FEW: usize = 256;

/// The ports on the host's side of connections that the host has asked for: above those that programs ask for.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The ports of a connection, which no other one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum End {
    /// A program of the host that is about to say which port it wants.
    Greeting { stream: Stream, line: Line },
    /// A connection, and the host's end of it while there is one.
    Connected { key: Key, connection: Connection, stream: Option<Stream> },
    /// What a guest has left that has sent all and knows nothing of the connection any more.
    Lingering { stream: Stream },
}

#[derive(Debug)]
struct Entry {
    end: End,
    expires: Option<Instant>,
    /// Its turn in the line for packets, if it is in it.
    turn: Option<u64>,
}

/// All entries.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<u64, Entry>,
    keys: HashMap<Key, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Those with a packet for the guest, or perhaps, by their turn.
    line: BTreeMap<u64, u64>,
    next_turn: u64,
    next: u64,
    next_port: u32,
    greetings: usize,
    /// Most connections.
    most: usize,
}

impl Table {
    /// Empty; the first number it gives is `first`. It has a place for `most` connections, no more than [`MOST_CONNECTIONS`].
    pub(super) fn new(first: u64, most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            keys: HashMap::new(),
            deadlines: BTreeSet::new(),
            line: BTreeMap::new(),
            next_turn: 0,
            next: first,
            next_port: FIRST_PORT,
            greetings: 0,
            most: most.min(MOST_CONNECTIONS),
        }
    }

    /// How many there are beside the greetings.
    pub(super) fn connections(&self) -> usize {
        self.entries.len().saturating_sub(self.greetings)
    }

    /// Whether there is a place for one more connection.
    pub(super) fn has_place(&self) -> bool {
        self.connections() < self.most
    }

    /// Whether there is a place for one more greeting.
    pub(super) fn greets(&self) -> bool {
        self.greetings < MOST_GREETINGS
    }

    /// Bytes that the next connection has room for.
    pub(super) fn room(&self) -> u32 {
        if self.connections() < FEW { LARGE_ROOM } else { SMALL_ROOM }
    }

    /// A number that nobody has had.
    pub(super) fn number(&mut self) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }

    /// Puts `end` into it, as `id`.
    pub(super) fn insert(&mut self, id: u64, end: End) {
        match &end {
            End::Greeting { .. } => self.greetings = self.greetings.saturating_add(1),
            End::Connected { key, .. } => drop(self.keys.insert(*key, id)),
            End::Lingering { .. } => {}
        }
        self.entries.insert(id, Entry { end, expires: None, turn: None });
    }

    /// What `id` is.
    pub(super) fn get(&mut self, id: u64) -> Option<&mut End> {
        self.entries.get_mut(&id).map(|entry| &mut entry.end)
    }

    /// The connection of these ports.
    pub(super) fn find(&self, key: Key) -> Option<u64> {
        self.keys.get(&key).copied()
    }

    /// Takes `id` out of it.
    pub(super) fn remove(&mut self, id: u64) -> Option<End> {
        self.expire(id, None);
        let entry = self.entries.remove(&id)?;
        if let Some(turn) = entry.turn {
            self.line.remove(&turn);
        }
        match &entry.end {
            End::Greeting { .. } => self.greetings = self.greetings.saturating_sub(1),
            End::Connected { key, .. } => drop(self.keys.remove(key)),
            End::Lingering { .. } => {}
        }
        Some(entry.end)
    }

    /// Something has to happen to `id` until then; `None`: nothing has to.
    pub(super) fn expire(&mut self, id: u64, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut entry.expires, at) {
            self.deadlines.remove(&(before, id));
        }
        if let Some(at) = at {
            self.deadlines.insert((at, id));
        }
    }

    /// The first moment until which something has to happen.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// One to which nothing has happened in time; it is given once.
    pub(super) fn expired(&mut self, now: Instant) -> Option<u64> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.expire(id, None);
        Some(id)
    }

    /// Puts `id` into the line for packets, once.
    pub(super) fn queue(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.turn.is_none()
        {
            entry.turn = Some(self.next_turn);
            self.line.insert(self.next_turn, id);
            self.next_turn = self.next_turn.wrapping_add(1);
        }
    }

    /// How many are in the line.
    pub(super) fn queued(&self) -> usize {
        self.line.len()
    }

    /// The first of the line, who leaves it.
    pub(super) fn next_queued(&mut self) -> Option<u64> {
        let (_, id) = self.line.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.turn = None;
        }
        Some(id)
    }

    /// A port of the host that has no connection with `guest`.
    pub(super) fn free_port(&mut self, guest: u32) -> Option<u32> {
        for _ in 0..=self.keys.len() {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host.saturating_add(1) };
            if self.find(Key { host, guest }).is_none() {
                return Some(host);
            }
        }
        None
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connected(host: u32, guest: u32) -> End {
        let connection = Connection::asked_by_host(0);
        End::Connected { key: Key { host, guest }, connection, stream: None }
    }

    #[test]
    fn whoever_is_in_the_line_is_in_it_once_and_leaves_with_its_entry() {
        let mut table = Table::new(1, MOST_CONNECTIONS);
        let ids: Vec<_> = (0..3)
            .map(|port| {
                let id = table.number();
                table.insert(id, connected(port, 0));
                table.queue(id);
                table.queue(id);
                id
            })
            .collect();
        assert_eq!((table.queued(), table.next_queued()), (3, Some(ids[0])));
        table.queue(ids[0]);
        table.remove(ids[1]);
        let rest: Vec<_> = std::iter::from_fn(|| table.next_queued()).collect();
        assert_eq!(rest, [ids[2], ids[0]]);
        assert_eq!((table.connections(), table.find(Key { host: 1, guest: 0 })), (2, None));
    }

    #[test]
    fn who_has_no_time_left_is_told_once_in_order() {
        let (mut table, now) = (Table::new(1, MOST_CONNECTIONS), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        for (id, seconds) in [(1, 3), (2, 1), (3, 2), (4, 1)] {
            table.insert(id, connected(id as u32, 0));
            table.expire(id, Some(at(9)));
            table.expire(id, Some(at(seconds)));
        }
        table.remove(4);
        assert_eq!((table.deadline(), table.expired(now)), (Some(at(1)), None));
        assert_eq!(
            (table.expired(at(2)), table.expired(at(2)), table.expired(at(2))),
            (Some(2), Some(3), None)
        );
        table.expire(1, None);
        assert_eq!((table.deadline(), table.expired(at(99))), (None, None));
    }

    #[test]
    fn fault_b10_ports_of_the_host_are_given_out_in_turn_and_none_twice() {
        let mut table = Table::new(1, MOST_CONNECTIONS);
        table.next_port = LAST_PORT;
        let mut given = Vec::new();
        for id in 0..5 {
            let port = table.free_port(7).unwrap();
            table.insert(id, connected(port, 7));
            given.push(port);
        }
        assert_eq!(given, [LAST_PORT, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2, FIRST_PORT + 3]);
        table.next_port = LAST_PORT;
        assert_eq!((table.free_port(7), table.free_port(8)), (Some(FIRST_PORT + 4), Some(FIRST_PORT + 5)));
    }

    #[test]
    fn fault_b10_room_of_all_together_is_bounded() {
        let mut table = Table::new(0, usize::MAX);
        let mut total = 0;
        for id in 0..MOST_CONNECTIONS as u64 {
            assert!(table.has_place());
            total += u64::from(table.room());
            table.insert(id, connected(id as u32, 0));
        }
        assert!(!table.has_place());
        // A greeting needs no such place.
        assert!(table.greets());
        assert!(total <= 192 << 20, "{total}");
    }
}
