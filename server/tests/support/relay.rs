//! A bad network: a UDP relay that stands between devices and a server and loses, delays, reorders,
//! duplicates, corrupts and cuts short what passes, as a seed says; on demand it cuts the line or
//! gives every device a new address.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Largest packet.
const MAX_PACKET: usize = 65_535;

/// What happens to packets, each on its own, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Share that is lost.
    pub loss: f64,
    /// Share that arrives twice.
    pub duplicate: f64,
    /// Share of which one bit changes.
    pub corrupt: f64,
    /// Share of which only a beginning arrives.
    pub truncate: f64,
    /// Time that every packet takes.
    pub delay: Duration,
    /// Time that a packet may take besides, at random: packets overtake each other.
    pub jitter: Duration,
}

impl Faults {
    /// Everything at once, on a line as mobile networks have it.
    pub const ALL: Self = Self {
        loss: 0.05,
        duplicate: 0.03,
        corrupt: 0.02,
        truncate: 0.01,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(10),
    };
}

/// A bad network. Dropped, it passes nothing any more.
pub struct Relay {
    address: SocketAddr,
    line: Arc<Line>,
    // Dropped last: it runs the tasks.
    _runtime: Runtime,
}

struct Line {
    front: UdpSocket,
    server: SocketAddr,
    faults: Mutex<Faults>,
    random: Mutex<ChaCha8Rng>,
    cut: AtomicBool,
    cut_answers: AtomicBool,
    passed: AtomicU64,
    /// Towards the server: a socket for each device.
    sides: Mutex<HashMap<SocketAddr, Side>>,
}

struct Side {
    socket: Arc<UdpSocket>,
    answers: JoinHandle<()>,
}

impl Relay {
    /// A network in front of `server`, at an address of its own.
    pub fn start(server: SocketAddr, faults: Faults, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("relay")
            .enable_all()
            .build()
            .unwrap();
        let front = runtime.block_on(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = front.local_addr().unwrap();
        let line = Arc::new(Line {
            front,
            server,
            faults: Mutex::new(faults),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            cut: AtomicBool::new(false),
            cut_answers: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            sides: Mutex::default(),
        });
        runtime.spawn(line.clone().listen());
        Self { address, line, _runtime: runtime }
    }

    /// Where devices find the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to packets from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.line.faults.lock().unwrap() = faults;
    }

    /// Cuts the line, or mends it. Packets on a cut line are lost.
    pub fn cut(&self, cut: bool) {
        self.line.cut.store(cut, Ordering::Relaxed);
    }

    /// Cuts the way back from the server alone, or mends it.
    pub fn cut_answers(&self, cut: bool) {
        self.line.cut_answers.store(cut, Ordering::Relaxed);
    }

    /// Gives every device a new address, as a network does that forgets its translations: answers
    /// to the old ones are lost.
    pub fn rebind(&self) {
        for (_, side) in self.line.sides.lock().unwrap().drain() {
            side.answers.abort();
        }
    }

    /// Packets passed on so far, in both directions.
    pub fn passed(&self) -> u64 {
        self.line.passed.load(Ordering::Relaxed)
    }
}

impl Line {
    /// Takes packets from devices.
    async fn listen(self: Arc<Self>) {
        let mut packet = vec![0; MAX_PACKET];
        loop {
            // Errors of a UDP socket are those of earlier packets; nobody waits for these.
            let Ok((len, device)) = self.front.recv_from(&mut packet).await else { continue };
            let socket = self.side(device).await;
            let server = self.server;
            self.pass(&packet[..len], move |bytes| {
                let socket = socket.clone();
                async move { socket.send_to(&bytes, server).await }
            });
        }
    }

    /// The socket by which a device's packets go to the server.
    async fn side(self: &Arc<Self>, device: SocketAddr) -> Arc<UdpSocket> {
        if let Some(side) = self.sides.lock().unwrap().get(&device) {
            return side.socket.clone();
        }
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let answers = tokio::spawn(self.clone().answer(device, socket.clone()));
        self.sides.lock().unwrap().insert(device, Side { socket: socket.clone(), answers });
        socket
    }

    /// Takes a server's packets to one device.
    async fn answer(self: Arc<Self>, device: SocketAddr, socket: Arc<UdpSocket>) {
        let mut packet = vec![0; MAX_PACKET];
        loop {
            let Ok((len, _)) = socket.recv_from(&mut packet).await else { continue };
            if self.cut_answers.load(Ordering::Relaxed) {
                continue;
            }
            let line = self.clone();
            self.pass(&packet[..len], move |bytes| {
                let line = line.clone();
                async move { line.front.send_to(&bytes, device).await }
            });
        }
    }

    /// Decides what becomes of a packet.
    fn pass<F: Future<Output = io::Result<usize>> + Send + 'static>(
        self: &Arc<Self>,
        packet: &[u8],
        send: impl Fn(Vec<u8>) -> F,
    ) {
        let faults = *self.faults.lock().unwrap();
        let mut random = self.random.lock().unwrap();
        if self.cut.load(Ordering::Relaxed) || random.random_bool(faults.loss) {
            return;
        }
        let copies = if random.random_bool(faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut bytes = packet.to_vec();
            if random.random_bool(faults.corrupt) && !bytes.is_empty() {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            if random.random_bool(faults.truncate) {
                bytes.truncate(random.random_range(0..=bytes.len()));
            }
            let delay = faults.delay + faults.jitter.mul_f64(random.random());
            // Counted before it is sent: whoever has received a packet finds it counted.
            self.passed.fetch_add(1, Ordering::Relaxed);
            let sending = send(bytes);
            tokio::spawn(async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                // What cannot be sent is lost, as packets are.
                let _ = sending.await;
            });
        }
    }
}
