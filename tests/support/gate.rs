//! A TCP gate before a server: open it lets everything through; shut, every connection breaks, old ones and new ones, as when a network is gone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

pub struct Gate {
    pub port: u16,
    open: Arc<AtomicBool>,
    through: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// Serves until the process ends.
    pub fn before(upstream: u16) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Gate { port, open: Arc::new(AtomicBool::new(true)), through: Arc::default() };
        let (open, through) = (Arc::clone(&gate.open), Arc::clone(&gate.through));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                let mut through = through.lock().unwrap();
                // Under the lock: `shut` must not miss it.
                if !open.load(Ordering::SeqCst) {
                    continue;
                }
                through.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (up, down) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                thread::spawn(move || copy(up.0, up.1));
                thread::spawn(move || copy(down.0, down.1));
            }
        });
        gate
    }

    pub fn shut(&self) {
        self.open.store(false, Ordering::SeqCst);
        for stream in self.through.lock().unwrap().drain(..) {
            // It may be closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        drop(stream.shutdown(Shutdown::Both));
    }
}
