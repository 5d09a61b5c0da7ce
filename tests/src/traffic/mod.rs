//! `Traffic`: what network trials and benchmarks send and receive. The same program is on both sides: the client says an order in a line, and
//! the server does its part of it.

pub mod endpoint;
pub mod server_disk;

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use endpoint::{Endpoint, Stream};

/// What is written or read at once.
const BLOCK: usize = 128 << 10;
/// Of a request and its response.
const ECHO: usize = 1;
/// Bytes of a datagram.
const DATAGRAM: usize = 64;
/// How long a datagram is waited for before it is looked whether more are to come.
const PAUSE: Duration = Duration::from_millis(50);

/// What comes over a connection.
type Input = BufReader<Box<dyn Stream>>;

/// What a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Read to the end, and say how many bytes came.
    Sink,
    /// Write for so long.
    Source(Duration),
    /// Read to the end, and say the hash of it.
    Hash,
    /// Write so many bytes of the noise that begins so.
    Noise { seed: u64, bytes: u64 },
    /// Give back what comes.
    Echo,
    /// Say a port, count what comes there until the client ends, and say the number.
    CountDatagrams,
    /// Say a port, and send to whoever sends something there, for so long.
    SendDatagrams(Duration),
}

impl Order {
    fn line(self) -> String {
        match self {
            Self::Sink => "sink\n".into(),
            Self::Source(time) => format!("source {}\n", time.as_millis()),
            Self::Hash => "hash\n".into(),
            Self::Noise { seed, bytes } => format!("noise {seed} {bytes}\n"),
            Self::Echo => "echo\n".into(),
            Self::CountDatagrams => "count\n".into(),
            Self::SendDatagrams(time) => format!("send {}\n", time.as_millis()),
        }
    }
}

impl FromStr for Order {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("no order: {line:?}"));
        let mut words = line.split_whitespace();
        let name = words.next().ok_or_else(unknown)?;
        let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or_else(unknown);
        Ok(match name {
            "sink" => Self::Sink,
            "source" => Self::Source(Duration::from_millis(number()?)),
            "hash" => Self::Hash,
            "noise" => Self::Noise { seed: number()?, bytes: number()? },
            "echo" => Self::Echo,
            "count" => Self::CountDatagrams,
            "send" => Self::SendDatagrams(Duration::from_millis(number()?)),
            _ => return Err(unknown()),
        })
    }
}

/// The server's part of one connection; datagrams go through `address`.
///
/// # Errors
///
/// The connection or its orders are not in order.
pub fn serve(mut stream: Box<dyn Stream>, address: Option<IpAddr>) -> io::Result<()> {
    let mut input = BufReader::new(stream.duplicate()?);
    let bound = || match address {
        Some(address) => UdpSocket::bind(SocketAddr::new(address, 0)),
        None => Err(io::Error::other("there are no datagrams here")),
    };
    let order = line(&mut input)?;
    if order.is_empty() {
        // Somebody has looked whether there is a server.
        return Ok(());
    }
    match order.parse()? {
        Order::Sink => {
            let bytes = drain(&mut input, |_| {})?;
            stream.write_all(format!("{bytes}\n").as_bytes())
        }
        Order::Hash => {
            let hash = hash_of(&mut input)?;
            stream.write_all(format!("{hash}\n").as_bytes())
        }
        Order::Noise { seed, bytes } => {
            noise(seed, bytes, |block| stream.write_all(block))?;
            stream.end_writing()
        }
        Order::Source(time) => {
            pour(&mut stream, time)?;
            stream.end_writing()
        }
        Order::Echo => {
            let mut bytes = [0; ECHO];
            loop {
                match input.read_exact(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    read => read?,
                }
                stream.write_all(&bytes)?;
            }
        }
        Order::CountDatagrams => {
            let socket = bound()?;
            stream.write_all(format!("{}\n", socket.local_addr()?.port()).as_bytes())?;
            let count = count_until_end(&socket, input)?;
            stream.write_all(format!("{count}\n").as_bytes())
        }
        Order::SendDatagrams(time) => {
            let socket = bound()?;
            stream.write_all(format!("{}\n", socket.local_addr()?.port()).as_bytes())?;
            let (_, peer) = socket.recv_from(&mut [0; DATAGRAM])?;
            socket.connect(peer)?;
            flood(&socket, time)?;
            stream.end_writing()
        }
    }
}

/// The client's part: a server, and how long each thing takes.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the server listens.
    pub server: Endpoint,
    /// Of one measurement.
    pub time: Duration,
}

impl Client {
    /// Writes to the server: MiB in a second, up to the moment when it has read everything.
    ///
    /// # Errors
    ///
    /// The connection fails, or what came is not what was sent.
    pub fn write(&self) -> io::Result<f64> {
        let (mut stream, mut input) = self.order(Order::Sink)?;
        let start = Instant::now();
        let sent = pour(&mut stream, self.time)?;
        stream.end_writing()?;
        let came: u64 = number(&line(&mut input)?)?;
        if came != sent {
            return Err(io::Error::other(format!("{sent} bytes were sent, {came} came")));
        }
        Ok(mebibytes(sent, start.elapsed()))
    }

    /// Reads from the server: MiB in a second.
    ///
    /// # Errors
    ///
    /// The connection fails.
    pub fn read(&self) -> io::Result<f64> {
        let start = Instant::now();
        let (_stream, mut input) = self.order(Order::Source(self.time))?;
        let bytes = drain(&mut input, |_| {})?;
        Ok(mebibytes(bytes, start.elapsed()))
    }

    /// Writes so many bytes to the server, which does not repeat itself.
    ///
    /// # Errors
    ///
    /// The connection fails, or other bytes came.
    pub fn send_noise(&self, seed: u64, bytes: u64) -> io::Result<()> {
        let (mut stream, mut input) = self.order(Order::Hash)?;
        let mut hasher = DefaultHasher::new();
        noise(seed, bytes, |block| {
            hasher.write(block);
            stream.write_all(block)
        })?;
        stream.end_writing()?;
        same(hasher.finish(), number(&line(&mut input)?)?)
    }

    /// Reads so many bytes from the server, which does not repeat itself.
    ///
    /// # Errors
    ///
    /// The connection fails, or other bytes came.
    pub fn receive_noise(&self, seed: u64, bytes: u64) -> io::Result<()> {
        let (_stream, mut input) = self.order(Order::Noise { seed, bytes })?;
        let mut hasher = DefaultHasher::new();
        noise(seed, bytes, |block| {
            hasher.write(block);
            Ok(())
        })?;
        same(hasher.finish(), hash_of(&mut input)?)
    }

    /// Has so many connections at once, each of which sends a byte of its own and waits for it, `rounds` times.
    ///
    /// # Errors
    ///
    /// One of them fails, or gets what is another's.
    pub fn crowd(&self, connections: usize, rounds: usize) -> io::Result<()> {
        let all = (0..connections).map(|_| self.order(Order::Echo));
        let mut all = all.collect::<io::Result<Vec<_>>>()?;
        for round in 0..rounds {
            let own = |number: usize| [number.wrapping_mul(31).wrapping_add(round) as u8; ECHO];
            for (number, (stream, _)) in all.iter_mut().enumerate() {
                stream.write_all(&own(number))?;
            }
            for (number, (_, input)) in all.iter_mut().enumerate() {
                let mut answer = [0; ECHO];
                input.read_exact(&mut answer)?;
                if answer != own(number) {
                    return Err(io::Error::other(format!("connection {number} got {answer:?}")));
                }
            }
        }
        Ok(())
    }

    /// Sends a byte and waits for its answer, again and again: microseconds, each of them.
    ///
    /// # Errors
    ///
    /// The connection fails.
    pub fn echoes(&self) -> io::Result<Vec<f64>> {
        let (mut stream, mut input) = self.order(Order::Echo)?;
        let mut bytes = [0; ECHO];
        let mut times = Vec::new();
        let end = Instant::now() + self.time;
        while Instant::now() < end {
            let start = Instant::now();
            stream.write_all(&bytes)?;
            input.read_exact(&mut bytes)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    /// Sends small datagrams: how many of them come in a second.
    ///
    /// # Errors
    ///
    /// The connection fails, or it is none of a network.
    pub fn send_datagrams(&self) -> io::Result<f64> {
        let (mut stream, mut input) = self.order(Order::CountDatagrams)?;
        let socket = self.datagrams(&mut input)?;
        flood(&socket, self.time)?;
        // What is on its way.
        thread::sleep(PAUSE);
        stream.flush()?;
        stream.end_writing()?;
        let count: u64 = number(&line(&mut input)?)?;
        Ok(count as f64 / self.time.as_secs_f64())
    }

    /// Has the server send small datagrams: how many of them come in a second.
    ///
    /// # Errors
    ///
    /// The connection fails, or it is none of a network.
    pub fn receive_datagrams(&self) -> io::Result<f64> {
        let (_stream, mut input) = self.order(Order::SendDatagrams(self.time))?;
        let socket = self.datagrams(&mut input)?;
        socket.send(&[0; DATAGRAM])?;
        let count = count_until_end(&socket, input)?;
        Ok(count as f64 / self.time.as_secs_f64())
    }

    fn order(&self, order: Order) -> io::Result<(Box<dyn Stream>, Input)> {
        let mut stream = self.server.connect()?;
        stream.write_all(order.line().as_bytes())?;
        let input = BufReader::new(stream.duplicate()?);
        Ok((stream, input))
    }

    /// A socket whose other end is the port that the server says.
    fn datagrams(&self, input: &mut impl BufRead) -> io::Result<UdpSocket> {
        let address = self.server.address().ok_or_else(|| io::Error::other("there are no datagrams here"))?;
        let port = number(&line(input)?)?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(SocketAddr::new(address, port))?;
        Ok(socket)
    }
}

fn same(sent: u64, came: u64) -> io::Result<()> {
    if sent == came { Ok(()) } else { Err(io::Error::other("what came is not what was sent")) }
}

fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line)
}

fn number<T: FromStr>(text: &str) -> io::Result<T> {
    text.trim_end().parse().map_err(|_| io::Error::other(format!("no number: {text:?}")))
}

fn mebibytes(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Reads to the end: how many bytes.
fn drain(input: &mut impl Read, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        match input.read(&mut block)? {
            0 => return Ok(bytes),
            length => {
                each(&block[..length]);
                bytes += length as u64;
            }
        }
    }
}

/// The hash of all that comes. Both sides are the same program, so that they have the same one.
fn hash_of(input: &mut impl Read) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    drain(input, |bytes| hasher.write(bytes))?;
    Ok(hasher.finish())
}

/// Bytes that do not repeat, block by block.
fn noise(seed: u64, bytes: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    // Never nothing, of which nothing else comes.
    let mut state = seed.wrapping_mul(2) + 1;
    let mut block = vec![0; BLOCK];
    let mut left = bytes;
    while left != 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let length = left.min(BLOCK as u64);
        each(&block[..length as usize])?;
        left -= length;
    }
    Ok(())
}

/// Writes for so long: how many bytes.
fn pour(output: &mut impl Write, time: Duration) -> io::Result<u64> {
    let block = vec![0xa5; BLOCK];
    let end = Instant::now() + time;
    let mut bytes = 0;
    while Instant::now() < end {
        output.write_all(&block)?;
        bytes += BLOCK as u64;
    }
    Ok(bytes)
}

/// Sends datagrams for so long. One that finds no room is lost, as others are on their way.
fn flood(socket: &UdpSocket, time: Duration) -> io::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        match socket.send(&[0; DATAGRAM]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            sent => drop(sent?),
        }
    }
    Ok(())
}

/// Counts datagrams until `input` is at its end and none has come for a while.
fn count_until_end(socket: &UdpSocket, mut input: impl Read + Send) -> io::Result<u64> {
    socket.set_read_timeout(Some(PAUSE))?;
    let is_over = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // However it ends.
            let _ = drain(&mut input, |_| {});
            is_over.store(true, Ordering::Relaxed);
        });
        let mut count = 0;
        loop {
            match socket.recv(&mut [0; DATAGRAM]) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if is_over.load(Ordering::Relaxed) {
                        return Ok(count);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    })
}

/// Serves whoever connects, for ever: what this program does in a guest.
///
/// # Errors
///
/// It cannot be listened there.
pub fn serve_at(at: &Endpoint) -> anyhow::Result<()> {
    let address = at.address();
    let each = move |stream| {
        if let Err(error) = serve(stream, address) {
            // Where nobody reads it, the client says that something is wrong.
            let _ = writeln!(io::stderr(), "a connection: {error}");
        }
    };
    at.serve(each).with_context(|| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client of a server in this process, which is there for as long as the test.
    fn client(server: Endpoint) -> Client {
        let listening = server.clone();
        let address = server.address();
        thread::spawn(move || listening.serve(move |stream| drop(serve(stream, address))));
        let client = Client { server, time: Duration::from_millis(50) };
        while client.server.connect().is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        client
    }

    fn free_port() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn orders_are_read_as_they_are_written() {
        let time = Duration::from_millis(1500);
        let all = [
            Order::Sink,
            Order::Source(time),
            Order::Echo,
            Order::CountDatagrams,
            Order::SendDatagrams(time),
        ];
        let all = all.into_iter().chain([Order::Hash, Order::Noise { seed: 7, bytes: 1 << 40 }]);
        for order in all {
            assert_eq!(order.line().parse::<Order>().unwrap(), order);
        }
        for wrong in ["", "source", "source x", "nothing"] {
            assert!(wrong.parse::<Order>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_unix_socket_has_streams_and_echoes_and_no_datagrams() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(Endpoint::Unix(directory.path().join("socket")));
        assert!(client.write().unwrap() > 0.0 && client.read().unwrap() > 0.0);
        assert!(client.echoes().unwrap().iter().all(|&time| time > 0.0));
        assert!(client.send_datagrams().is_err());
        for bytes in [0, 1, BLOCK as u64 + 1] {
            client.send_noise(1, bytes).unwrap();
            client.receive_noise(2, bytes).unwrap();
        }
        client.crowd(20, 3).unwrap();
    }

    #[test]
    fn a_network_has_datagrams_too() {
        let client = client(Endpoint::Tcp(free_port()));
        assert!(client.write().unwrap() > 0.0 && client.read().unwrap() > 0.0);
        assert!(!client.echoes().unwrap().is_empty());
        assert!(client.send_datagrams().unwrap() > 0.0 && client.receive_datagrams().unwrap() > 0.0);
    }
}
