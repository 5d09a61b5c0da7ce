//! `Connection`: one connection to a back end, and what was agreed on it. Nothing that is asked for here takes longer than
//! [`PATIENCE`]; after an error the connection is of no use any more.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::VhostUserError;
use super::deadline::Deadline;
use super::pairs;
use super::table::{self, Change, Run};
use crate::Connector;
use crate::virtio::features;
use crate::virtio::queue::QueueState;
use crate::virtio::vhost::{VhostRing, areas, place};

/// What each call of a method may take, whatever the back end does.
const PATIENCE: Duration = Duration::from_secs(4);

/// Regions of guest RAM that every back end takes in one message.
const REGIONS: usize = 8;

/// Most regions that are told one by one; a back end may take fewer.
const MOST_REGIONS: usize = 512;

/// VHOST_USER_F_PROTOCOL_FEATURES: a bit of the protocol, which no driver sees.
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What a class of device asks of its back end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Bytes of the configuration that the back end tells; 0: none.
    pub(super) config: u32,
    /// How the number of rings is known that it has.
    pub(super) rings: Rings,
}

/// See [`Wanted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rings {
    /// Every back end has so many.
    Known(usize),
    /// It tells, and has one if it cannot.
    Told,
    /// It tells how many pairs it has, as back ends of network devices do, and has one if it cannot. So many rings are used.
    ToldInPairs(usize),
}

/// A back end that answers.
pub(super) struct Connection {
    frontend: Frontend,
    socket: UnixStream,
    deadline: Deadline,
    agreed: VhostUserProtocolFeatures,
    /// Feature bits of rings and device.
    pub(super) features: u64,
    /// How many rings it has.
    pub(super) rings: u64,
    /// What it says about the device.
    pub(super) config: Vec<u8>,
    /// Most regions that it takes.
    regions: usize,
    /// What it knows of guest RAM.
    known: Vec<Run>,
}

/// What is asked for at the moment, for whoever gets no answer.
type Asked<T> = Result<T, (&'static str, vhost::Error)>;

impl Connection {
    /// Connects to `socket` and agrees on what there is.
    ///
    /// # Errors
    /// [`VhostUserError`] says what is missing.
    pub(super) fn open(socket: &dyn Connector, wanted: Wanted) -> Result<Self, VhostUserError> {
        let failed = |source| VhostUserError::Connect { path: socket.path().into(), source };
        Self::over(connected(socket).map_err(failed)?, wanted)
    }

    /// The same over a socket that is connected.
    pub(super) fn over(socket: UnixStream, wanted: Wanted) -> Result<Self, VhostUserError> {
        let deadline = Deadline::new(&socket).map_err(VhostUserError::Own)?;
        let own = socket.try_clone().map_err(VhostUserError::Own)?;
        let (rings, most) = match wanted.rings {
            Rings::Known(rings) => (rings, rings),
            Rings::Told => (1, 1),
            Rings::ToldInPairs(most) => (pairs::RINGS, most),
        };
        let [rings, most] = [rings, most].map(|count| u64::try_from(count).unwrap_or(u64::MAX));
        let mut connection = Self {
            frontend: Frontend::from_stream(own, most),
            socket,
            deadline,
            agreed: VhostUserProtocolFeatures::empty(),
            features: 0,
            rings,
            config: Vec::new(),
            regions: REGIONS,
            known: Vec::new(),
        };
        connection.agree(wanted)?;
        Ok(connection)
    }

    /// Feature bits, then those of the protocol, then what they let be asked.
    fn agree(&mut self, wanted: Wanted) -> Result<(), VhostUserError> {
        self.features = self.ask(|frontend, _| {
            let features = frontend.get_features().map_err(|error| ("features", error))?;
            frontend.set_owner().map_err(|error| ("owner", error)).map(|()| features)
        })?;
        match (features::VERSION_1 | PROTOCOL) & !self.features {
            0 => {}
            missing => return Err(VhostUserError::Features { missing }),
        }
        let has = self.ask(|frontend, _| {
            frontend.get_protocol_features().map_err(|error| ("protocol features", error))
        })?;
        let mut agreed =
            VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if wanted.config > 0 {
            agreed |= VhostUserProtocolFeatures::CONFIG;
        }
        if !matches!(wanted.rings, Rings::Known(_)) {
            agreed |= VhostUserProtocolFeatures::MQ;
        }
        let agreed = agreed & has;
        if wanted.config > 0 && !agreed.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(VhostUserError::NoConfig);
        }
        self.ask(|frontend, _| {
            frontend.set_protocol_features(agreed).map_err(|error| ("protocol features", error))
        })?;
        self.agreed = agreed;
        if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.look(wanted)
    }

    /// What the back end says about itself and its device.
    fn look(&mut self, wanted: Wanted) -> Result<(), VhostUserError> {
        if self.agreed.contains(VhostUserProtocolFeatures::MQ) {
            let failed = |error: vhost::Error| ("queues", error);
            self.rings = if let Rings::ToldInPairs(_) = wanted.rings {
                let socket = self.socket.try_clone().map_err(VhostUserError::Own)?;
                self.ask(|_, _| pairs::told_rings(&socket).map_err(failed))?
            } else {
                self.ask(|frontend, _| frontend.get_queue_num().map_err(failed))?
            };
        }
        if self.agreed.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            let most =
                self.ask(|frontend, _| frontend.get_max_mem_slots().map_err(|error| ("regions", error)))?;
            self.regions = usize::try_from(most).unwrap_or(MOST_REGIONS).min(MOST_REGIONS);
        }
        if wanted.config > 0 {
            let none = vec![0; usize::try_from(wanted.config).unwrap_or(0)];
            let empty = VhostUserConfigFlags::empty();
            self.config = self.ask(|frontend, _| {
                let answer = frontend.get_config(0, wanted.config, empty, &none);
                answer.map(|(_, config)| config).map_err(|error| ("configuration", error))
            })?;
        }
        Ok(())
    }

    /// Whether the other end has gone.
    pub(super) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
        // An error is none of the connection.
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Lets the back end know that it is of no use any more; who watches the connection is woken.
    pub(super) fn shut_down(&self) {
        // It fails only where the other end has gone.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// What there is to be told of other memory.
    ///
    /// # Errors
    /// The back end does not take so much; it goes on with what it knows.
    pub(super) fn plan(&self, memory: &GuestMemory) -> Result<Change, VhostUserError> {
        let runs = table::runs(memory)?;
        if self.agreed.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return Change::new(&self.known, &runs, self.regions);
        }
        let change = Change::new(&self.known, &runs, REGIONS)?;
        if change.removed.is_empty() && change.added.is_empty() {
            return Ok(change);
        }
        // It takes all or nothing.
        Ok(Change { removed: self.known.clone(), added: runs.clone(), all: runs })
    }

    /// Tells of other memory. When this returns the back end has it, and nothing else.
    pub(super) fn set_memory(&mut self, change: Change) -> Result<(), VhostUserError> {
        let Change { removed, added, all } = change;
        let one_by_one = self.agreed.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        if !one_by_one && all.is_empty() {
            // It cannot be said, and nothing runs; nothing is known to be known either.
            self.known.clear();
            return Ok(());
        }
        if !removed.is_empty() || !added.is_empty() {
            self.ask(|frontend, acknowledges| {
                let failed = |error| ("guest RAM", error);
                if one_by_one {
                    removed
                        .iter()
                        .try_for_each(|run| frontend.remove_mem_region(&run.info()))
                        .map_err(failed)?;
                    let mut add = |run: &Run| frontend.add_mem_region(&run.info()).map(drop);
                    added.iter().try_for_each(&mut add).map_err(failed)?;
                } else {
                    let infos: Vec<VhostUserMemoryRegionInfo> = all.iter().map(Run::info).collect();
                    frontend.set_mem_table(&infos).map(drop).map_err(failed)?;
                }
                // Who does not acknowledge answers in the order of the requests all the same.
                if acknowledges { Ok(()) } else { frontend.get_features().map(drop).map_err(failed) }
            })?;
        }
        self.known = all;
        Ok(())
    }

    /// Has `rings` served, which are in `memory`; of them only the first `enabled` of the device are enabled.
    pub(super) fn start(
        &mut self,
        features: u64,
        rings: &[VhostRing],
        enabled: usize,
        memory: &GuestMemory,
    ) -> Result<(), VhostUserError> {
        let configs: Vec<_> =
            rings.iter().map(|ring| config(&ring.queue, memory)).collect::<Result<_, _>>()?;
        let features = features & self.features | PROTOCOL;
        self.ask(|frontend, _| {
            frontend.set_features(features).map_err(|error| ("features", error))?;
            for (VhostRing { index, queue, kick, call, error }, config) in rings.iter().zip(&configs) {
                let index = *index;
                frontend
                    .set_vring_num(index, queue.size)
                    .and_then(|()| frontend.set_vring_base(index, queue.next_available))
                    .and_then(|()| frontend.set_vring_addr(index, config))
                    .and_then(|()| frontend.set_vring_err(index, error))
                    .and_then(|()| frontend.set_vring_call(index, call))
                    .and_then(|()| frontend.set_vring_kick(index, kick))
                    .and_then(|()| frontend.set_vring_enable(index, index < enabled))
                    .map_err(|error| ("a ring", error))?;
            }
            Ok(())
        })
    }

    /// Enables the first `enabled` of `rings` rings, and no others.
    pub(super) fn enable(&mut self, rings: usize, enabled: usize) -> Result<(), VhostUserError> {
        self.ask(|frontend, _| {
            (0..rings)
                .try_for_each(|ring| frontend.set_vring_enable(ring, ring < enabled))
                .map_err(|error| ("rings that are used", error))
        })
    }

    /// Has `rings` not served any more; returns from where each goes on.
    pub(super) fn stop(&mut self, rings: &[VhostRing]) -> Result<Vec<u16>, VhostUserError> {
        self.ask(|frontend, _| {
            let stopped = rings.iter().map(|ring| {
                frontend.set_vring_enable(ring.index, false)?;
                let base = frontend.get_vring_base(ring.index)?;
                // More only with packed rings, which are not offered.
                Ok(u16::try_from(base & 0xffff).unwrap_or(0))
            });
            stopped.collect::<Result<_, _>>().map_err(|error| ("the end of a ring", error))
        })
    }

    /// Has another eventfd signalled for the driver.
    pub(super) fn set_call(&mut self, ring: usize, call: &EventFd) -> Result<(), VhostUserError> {
        self.ask(|frontend, _| frontend.set_vring_call(ring, call).map_err(|error| ("an interrupt", error)))
    }

    /// Asks, and waits for the answers within the deadline. `ask` gets whether requests without an answer are acknowledged.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Frontend, bool) -> Asked<T>) -> Result<T, VhostUserError> {
        let acknowledges = self.agreed.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let frontend = &mut self.frontend;
        let asked = self.deadline.during(PATIENCE, || ask(frontend, acknowledges));
        asked.map_err(|(step, source)| match source {
            _ if self.deadline.has_passed() => VhostUserError::Silent { step, time: PATIENCE },
            _ if self.is_closed() => VhostUserError::Closed,
            source => VhostUserError::Broken { step, source },
        })
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Where a ring is, in addresses of this process.
fn config(queue: &QueueState, memory: &GuestMemory) -> Result<VringConfigData, VhostUserError> {
    let mut places = areas(queue).into_iter().map(|area| {
        let place = place(memory, area).and_then(|place| u64::try_from(place).ok());
        place.ok_or(VhostUserError::Scattered)
    });
    let mut next = || places.next().unwrap_or(Err(VhostUserError::Scattered));
    let (desc_table_addr, avail_ring_addr, used_ring_addr) = (next()?, next()?, next()?);
    Ok(VringConfigData {
        queue_max_size: queue.size,
        queue_size: queue.size,
        desc_table_addr,
        avail_ring_addr,
        used_ring_addr,
        ..VringConfigData::default()
    })
}

/// Connects without waiting for who does not accept; the socket blocks then.
fn connected(socket: &dyn Connector) -> io::Result<UnixStream> {
    let stream = socket.connect(None)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
