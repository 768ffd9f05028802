//! A TCP proxy that breaks connections on purpose: one plan per connection, in the order in which they come.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What happens to one connection.
#[derive(Debug, Clone, Copy)]
pub enum Plan {
    /// Cut after so many bytes from the client.
    CutRequest(usize),
    /// Cut after so many bytes from the server.
    CutAnswer(usize),
    /// Every piece of the answer waits this long; cut after 20 MiB of it, so that other plans get their turn.
    Delay(Duration),
    /// Every piece of the request, of at most 64 KiB, waits this long.
    SlowRequest(Duration),
    /// The first request is answered with 503, without asking the server.
    Unavailable,
}

pub struct Proxy {
    pub port: u16,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Serves until the process ends; connection number `n` follows `plans[n % plans.len()]`.
    pub fn start(upstream: u16, plans: &'static [Plan]) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let plan = plans[count.fetch_add(1, Ordering::Relaxed) % plans.len()];
                thread::spawn(move || serve(client, upstream, plan));
            }
        });
        Proxy { port, connections }
    }
}

fn serve(mut client: TcpStream, upstream: u16, plan: Plan) {
    const PLENTY: usize = 20 << 20;
    let none = Duration::ZERO;
    let (request, answer, delays) = match plan {
        Plan::CutRequest(bytes) => (bytes, PLENTY, (none, none)),
        Plan::CutAnswer(bytes) => (PLENTY, bytes, (none, none)),
        Plan::Delay(time) => (PLENTY, PLENTY, (none, time)),
        Plan::SlowRequest(time) => (usize::MAX, usize::MAX, (time, none)),
        Plan::Unavailable => return unavailable(&mut client),
    };
    let server = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || copy(from_client, to_server, request, delays.0));
    copy(server, client, answer, delays.1);
}

/// Copies until the end, an error or `budget` bytes, then closes both connections for good.
fn copy(mut from: TcpStream, mut to: TcpStream, mut budget: usize, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while budget > 0 {
        let room = budget.min(buffer.len());
        let Ok(length @ 1..) = from.read(&mut buffer[..room]) else { break };
        thread::sleep(delay);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        budget -= length;
    }
    for stream in [from, to] {
        // It may be closed already.
        drop(stream.shutdown(Shutdown::Both));
    }
}

fn unavailable(client: &mut TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut buffer) {
            Ok(length @ 1..) => request.extend_from_slice(&buffer[..length]),
            _ => return,
        }
    }
    // The client may be gone.
    drop(client.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
}
