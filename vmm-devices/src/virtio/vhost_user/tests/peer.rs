//! A back end that is a thread of the test: it does what the protocol says, unless the test has another idea.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::sync::lock;

/// Requests of the protocol.
pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(super) const ADD_MEM_REG: u32 = 37;
pub(super) const REM_MEM_REG: u32 = 38;

/// Protocol features.
pub(super) const MQ: u64 = 1 << 0;
pub(super) const REPLY_ACK: u64 = 1 << 3;
pub(super) const CONFIG: u64 = 1 << 9;
pub(super) const SLOTS: u64 = 1 << 15;

const NEED_REPLY: u32 = 8;
/// Version 1, and that it is a reply.
const REPLY: u32 = 5;

/// One message.
pub(super) struct Message {
    pub(super) request: u32,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<File>,
}

/// What the test has the peer do in the place of its answer.
pub(super) enum Answer {
    AsUsual,
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// A reply to this request with this payload.
    Reply(u32, Vec<u8>),
    Silence,
    /// These bytes, and then the end.
    Close(Vec<u8>),
}

/// What the peer has.
#[derive(Clone, Copy)]
pub(super) struct Has {
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) queues: u64,
    /// Bytes that its configuration is made of.
    pub(super) config: u8,
}

impl Default for Has {
    fn default() -> Self {
        let features = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
        Self { features, protocol: MQ | REPLY_ACK | CONFIG | SLOTS, queues: 4, config: 7 }
    }
}

type Idea = Box<dyn FnMut(&Message) -> Answer + Send>;

/// A back end, and what it has been told.
pub(super) struct Peer {
    shared: Arc<Shared>,
    /// Shut down by the end of the test.
    socket: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Vec<Message>>,
    more: Condvar,
}

impl Peer {
    /// One at the other end of the socket that is returned.
    pub(super) fn pair(
        has: Has,
        idea: impl FnMut(&Message) -> Answer + Send + 'static,
    ) -> (UnixStream, Self) {
        let (here, there) = UnixStream::pair().unwrap();
        let shared = Arc::<Shared>::default();
        let served = (Arc::clone(&shared), there.try_clone().unwrap());
        let mut idea: Idea = Box::new(idea);
        let thread = thread::spawn(move || serve(&served.0, served.1, has, &mut idea));
        (here, Self { shared, socket: Some(there), thread: Some(thread) })
    }

    /// One that waits at `path` for whoever connects, once, and for as long as that one stays.
    pub(super) fn listen(path: &Path, has: Has) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::<Shared>::default();
        let told = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            serve(&told, socket, has, &mut |_: &Message| Answer::AsUsual);
        });
        Self { shared, socket: None, thread: Some(thread) }
    }

    /// Is gone as if it were killed.
    pub(super) fn die(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(std::net::Shutdown::Both);
            drop(self.thread.take().map(JoinHandle::join));
        }
    }

    /// The payloads of the messages with `request`, in their order, once there are `count`.
    pub(super) fn wait_for(&self, request: u32, count: usize) -> Vec<Vec<u8>> {
        let payloads = |told: &Vec<Message>| -> Vec<_> {
            told.iter().filter(|message| message.request == request).map(|m| m.payload.clone()).collect()
        };
        let told = lock(&self.shared.told);
        let told = self.shared.more.wait_while(told, |told| payloads(told).len() < count).unwrap();
        payloads(&told)
    }

    /// All requests so far.
    pub(super) fn requests(&self) -> Vec<u32> {
        lock(&self.shared.told).iter().map(|message| message.request).collect()
    }

    /// The last descriptor that came with `request` for ring `ring`.
    pub(super) fn file(&self, request: u32, ring: u8) -> File {
        let told = lock(&self.shared.told);
        let is_it = |message: &&Message| message.request == request && message.payload[0] == ring;
        told.iter().rev().find(is_it).unwrap().files[0].try_clone().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A reply with its header.
pub(super) fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = [request, REPLY, size].map(u32::to_le_bytes).concat();
    [&header[..], payload].concat()
}

fn serve(shared: &Shared, mut socket: UnixStream, has: Has, idea: &mut dyn FnMut(&Message) -> Answer) {
    let mut acknowledges = false;
    while let Some((message, needs_reply)) = read(&socket) {
        let request = message.request;
        let answer = idea(&message);
        if request == SET_PROTOCOL_FEATURES {
            acknowledges = number(&message.payload) & REPLY_ACK != 0;
        }
        let usual = usual(&message, has);
        lock(&shared.told).push(message);
        shared.more.notify_all();
        let bytes = match answer {
            Answer::AsUsual => match usual {
                Some(payload) => reply(request, &payload),
                None if acknowledges && needs_reply => reply(request, &[0; 8]),
                None => continue,
            },
            Answer::Reply(request, payload) => reply(request, &payload),
            Answer::Bytes(bytes) | Answer::Close(bytes) if bytes.is_empty() => break,
            Answer::Bytes(bytes) => bytes,
            Answer::Close(bytes) => {
                let _ = socket.write_all(&bytes);
                break;
            }
            Answer::Silence => continue,
        };
        if socket.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

/// What is answered, beside acknowledgements.
fn usual(message: &Message, has: Has) -> Option<Vec<u8>> {
    let number = match message.request {
        GET_FEATURES => has.features,
        GET_PROTOCOL_FEATURES => has.protocol,
        GET_QUEUE_NUM => has.queues,
        GET_MAX_MEM_SLOTS => 32,
        // As many chains as there were before.
        GET_VRING_BASE => u64::from(message.payload[0]) | 3 << 32,
        GET_CONFIG => {
            let mut payload = message.payload.clone();
            payload[12..].fill(has.config);
            return Some(payload);
        }
        _ => return None,
    };
    Some(number.to_le_bytes().to_vec())
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

/// The next message, and whether it wants a reply; `None`: the other end has gone.
fn read(socket: &UnixStream) -> Option<(Message, bool)> {
    let mut header = [0; 12];
    let mut files = Vec::new();
    fill(socket, &mut header, &mut files)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; usize::try_from(word(8)).unwrap()];
    fill(socket, &mut payload, &mut files)?;
    Some((Message { request: word(0), payload, files }, word(4) & NEED_REPLY != 0))
}

fn fill(socket: &UnixStream, bytes: &mut [u8], files: &mut Vec<File>) -> Option<()> {
    let mut at = 0;
    while at < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes[at..])];
        let received = recvmsg(socket, &mut buffers, &mut control, RecvFlags::empty());
        let count = received.ok().map(|received| received.bytes).filter(|count| *count > 0)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds.map(File::from));
            }
        }
        at += count;
    }
    Some(())
}
