//! The host's side of a hub: who is taken in, who is connected to, what sockets have to say, and what is due.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Hub, forward, shut};
use crate::virtio::vsock::connection::Connection;
use crate::virtio::vsock::host::{News, Stream};
use crate::virtio::vsock::line::{Line, Said};
use crate::virtio::vsock::packet::Sides;
use crate::virtio::vsock::table::{End, Key, MOST_CONNECTIONS};

/// The number under which the listener is watched.
pub(super) const LISTENER: u64 = 0;

/// How long a program of the host may take to say which port it wants.
pub(crate) const SAYING: Duration = Duration::from_secs(5);

/// How long a guest may take to accept a connection.
const ACCEPTING: Duration = Duration::from_secs(10);

/// How long a guest waits for a host that has no place for it at the moment; its driver gives up about then.
pub(super) const CONNECTING: Duration = Duration::from_secs(2);

/// When such a host is tried again, and how many a time.
const RETRY: Duration = Duration::from_millis(10);
const RETRIES: usize = 64;

/// How long nobody is taken in when the host has no descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Programs that are taken in at once.
const KNOCKS: usize = 32;

/// Tells a program of the host that it is connected, by the port that it has on its side. Whether that could be said.
pub(super) fn greet(stream: &mut Stream, port: u32) -> bool {
    let line = format!("OK {port}\n");
    // The first bytes of a socket: there is room for them.
    stream.readable = true;
    stream.write(line.as_bytes()).is_ok_and(|taken| taken == line.len())
}

impl Hub {
    /// Watches the listener as long as there is a place.
    pub(super) fn listen(&mut self) {
        let listens = self.deaf_until.is_none() && self.table.greets();
        if listens == self.listens {
            return;
        }
        let (watch, listener) = (&self.parts.watch, &self.parts.listener);
        let changed = if listens { watch.listen(listener, LISTENER) } else { watch.ignore(listener) };
        match changed {
            Ok(()) => self.listens = listens,
            Err(error) => tracing::error!(%error, "the socket of a vsock device cannot be watched"),
        }
    }

    /// Connects the connection `id`, which the guest has asked for, to what listens at `port`.
    pub(super) fn connect(&mut self, id: u64, port: u32, now: Instant) {
        let stream = self.parts.ports.connect(Some(port)).map(Stream::new);
        let stream = stream.and_then(|stream| self.parts.watch.add(&stream, id).map(|()| stream));
        let Some(End::Connected { connection, stream: place, .. }) = self.table.get(id) else { return };
        match stream {
            Ok(stream) => {
                *place = Some(stream);
                connection.accept();
                self.parts.counters.opened_by_guest.one();
                self.table.expire(id, None);
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && self.retries.len() < MOST_CONNECTIONS =>
            {
                self.retries.push_back(id);
                self.retry_at = self.retry_at.or(now.checked_add(RETRY));
                return;
            }
            Err(_) => {
                connection.fail();
                self.parts.counters.refused_by_host.one();
            }
        }
        self.wake(id);
    }

    /// Takes programs of the host in, as far as there is place.
    fn accept(&mut self, now: Instant) {
        for _ in 0..KNOCKS {
            if !self.table.greets() {
                break;
            }
            match self.parts.listener.accept() {
                Ok((socket, _)) => self.take_in(socket, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    if let Some(left_out) = self.log.permit() {
                        tracing::warn!(%error, left_out, "the socket of a vsock device cannot take anybody in");
                    }
                    self.deaf_until = now.checked_add(BACK_OFF);
                    break;
                }
            }
        }
        self.listen();
    }

    fn take_in(&mut self, socket: UnixStream, now: Instant) {
        let id = self.table.number();
        let watched = socket.set_nonblocking(true).and_then(|()| self.parts.watch.add(&socket, id));
        if watched.is_err() {
            self.parts.counters.dismissed.one();
            return;
        }
        self.table.insert(id, End::Greeting { stream: Stream::new(socket), line: Line::default() });
        self.table.expire(id, now.checked_add(SAYING));
    }

    /// A program that was taken in has said something.
    fn hear(&mut self, id: u64, now: Instant) {
        let Some(End::Greeting { stream, line }) = self.table.get(id) else { return };
        let said = stream.read_line(line).unwrap_or(Said::Other);
        if said == Said::More {
            return;
        }
        let Some(End::Greeting { stream, .. }) = self.table.remove(id) else { return };
        match said {
            Said::Connect(port) if self.parts.streams && self.table.has_place() => {
                self.request(id, stream, port, now);
            }
            // Dropped, it finds an end.
            _ => self.parts.counters.dismissed.one(),
        }
        self.listen();
    }

    /// Asks the guest for a connection to `port`.
    fn request(&mut self, id: u64, mut stream: Stream, port: u32, now: Instant) {
        let Some(host) = self.table.free_port(port) else { return };
        // It may have said more already, of which nobody will be told again.
        stream.readable = true;
        let key = Key { host, guest: port };
        let connection = Connection::asked_by_host(self.table.room());
        self.table.insert(id, End::Connected { key, connection, stream: Some(stream) });
        self.table.expire(id, now.checked_add(ACCEPTING));
        self.wake(id);
    }

    /// What a socket has to say.
    pub(crate) fn news(&mut self, news: News, now: Instant) {
        let id = news.id;
        if id == LISTENER {
            self.accept(now);
            return;
        }
        match self.table.get(id) {
            None => {}
            Some(End::Greeting { .. }) => self.hear(id, now),
            Some(End::Lingering { stream }) => {
                let goes_on = !news.writable || stream.flush().is_ok_and(|_| stream.backlog() != 0);
                if !goes_on {
                    self.table.remove(id);
                }
            }
            Some(End::Connected { connection, stream: Some(stream), .. }) => {
                stream.readable |= news.readable;
                stream.hung_up |= news.hung_up;
                if news.hung_up && connection.is_requested() {
                    connection.fail();
                }
                if news.writable && stream.backlog() != 0 {
                    self.flush(id);
                }
                self.hang_up(id);
                self.wake(id);
            }
            Some(End::Connected { stream: None, .. }) => {}
        }
    }

    /// Writes what waits for the host of the connection `id`.
    fn flush(&mut self, id: u64) {
        let Some(End::Connected { connection, stream: Some(stream), .. }) = self.table.get(id) else {
            return;
        };
        match stream.flush() {
            Ok(taken) => {
                forward(connection, taken);
                self.parts.counters.bytes_to_host.add(taken);
            }
            Err(_) => shut(connection, stream, Sides { receive: true, send: false }),
        }
        if stream.backlog() == 0 {
            stream.wants_room = self.parts.watch.change(stream, id, false).is_err();
            if connection.shut_by_guest().send {
                stream.shut_write();
            }
        }
    }

    /// A host's end that has gone, and of which nothing is to be read any more, is told to the guest.
    fn hang_up(&mut self, id: u64) {
        let Some(End::Connected { connection, stream: Some(stream), .. }) = self.table.get(id) else {
            return;
        };
        if stream.hung_up && connection.is_open() && !connection.wants_data() {
            shut(connection, stream, Sides::BOTH);
        }
    }

    /// Does what is due.
    pub(crate) fn pass_time(&mut self, now: Instant) {
        while let Some(id) = self.table.expired(now) {
            self.give_up(id);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.retry(now);
        }
        if self.deaf_until.is_some_and(|until| until <= now) {
            self.deaf_until = None;
        }
        self.listen();
    }

    /// What `id` has waited for has not come.
    fn give_up(&mut self, id: u64) {
        match self.table.get(id) {
            Some(End::Greeting { .. }) => {
                self.table.remove(id);
                self.parts.counters.dismissed.one();
            }
            Some(End::Connected { connection, .. }) if !connection.has_ended() => {
                if connection.is_requested() {
                    self.parts.counters.refused_by_guest.one();
                } else if !connection.is_open() {
                    self.parts.counters.refused_by_host.one();
                }
                connection.fail();
                self.wake(id);
            }
            Some(End::Connected { .. } | End::Lingering { .. }) | None => {}
        }
    }

    /// Tries again to connect those for whom there was no place.
    fn retry(&mut self, now: Instant) {
        for _ in 0..RETRIES.min(self.retries.len()) {
            let Some(id) = self.retries.pop_front() else { return };
            if let Some(End::Connected { key, connection, .. }) = self.table.get(id)
                && !connection.has_ended()
            {
                let port = key.host;
                self.connect(id, port, now);
            }
        }
        if !self.retries.is_empty() {
            self.retry_at = self.retry_at.or(now.checked_add(RETRY));
        }
    }
}

/// Whether the client has changed its mind, or nothing has happened at all.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}
