//! A server that says what it should not, and breaks off where it should not: nothing may be committed.

use super::said;
use blackstart::clock::SystemClock;
use blackstart::source::redis::{Options, Redis};
use blackstart::source::{Piece, Source};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;

const INFO: &str = "redis_version:7.0.15\r\nrole:master\r\nloading:0\r\nserver_time_usec:1763000000000000\r\n";
const MARK: &str = "0123456789abcdef0123456789abcdef01234567";
/// An RDB file with nothing in it; its checksum, which is right.
const EMPTY: &[u8] = b"REDIS0010\xff";

/// Speaks RESP to one client after another; `sync` is what it answers to SYNC, a byte at a time where that is asked for, then it hangs up.
fn server(info: &'static str, sync: Vec<u8>, slowly: bool) -> Redis {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = client.read(&mut buffer) {
                let command = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if command.contains("\r\nSYNC\r\n") {
                    for piece in sync.chunks(if slowly { 1 } else { sync.len().max(1) }) {
                        client.write_all(piece).unwrap();
                    }
                    client.shutdown(Shutdown::Both).unwrap();
                } else if command.contains("\r\nINFO\r\n") {
                    client.write_all(format!("${}\r\n{info}\r\n", info.len()).as_bytes()).unwrap();
                } else {
                    client.write_all(b"-ERR unknown command\r\n").unwrap();
                }
            }
        }
    });
    Redis::open(&url, None, Options::default(), Arc::new(SystemClock)).unwrap()
}

fn read(mut source: Redis) -> anyhow::Result<(u64, serde_json::Value)> {
    let mut bytes = 0;
    let mut buffer = vec![0; 1000];
    while let Some(entry) = source.next()? {
        if entry.path.is_empty() {
            continue;
        }
        loop {
            match source.read(&mut buffer)? {
                Piece::Data(n) => bytes += n as u64,
                Piece::StreamEnd => break,
                other => panic!("{other:?}"),
            }
        }
    }
    Ok((bytes, source.finish()?.facts))
}

fn refusal(sync: impl AsRef<[u8]>) -> String {
    said(&read(server(INFO, sync.as_ref().to_vec(), false)).unwrap_err())
}

fn with_sum(file: &[u8]) -> Vec<u8> {
    let mut sum = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Redis);
    sum.update(file);
    [file, &sum.finalize().to_le_bytes()].concat()
}

/// As a server sends a file of unknown length.
fn marked(file: &[u8]) -> Vec<u8> {
    [format!("\n\n\n$EOF:{MARK}\r\n").as_bytes(), file, MARK.as_bytes()].concat()
}

#[test]
fn both_framings_and_every_split() {
    let file = with_sum(EMPTY);
    for sync in [marked(&file), [format!("\n${}\r\n", file.len()).as_bytes(), &file].concat()] {
        for slowly in [false, true] {
            let (bytes, facts) = read(server(INFO, sync.clone(), slowly)).unwrap();
            assert_eq!((bytes, &facts["rdb"]["checksum"]), (file.len() as u64, &true.into()));
        }
    }
}

#[test]
fn a_checksum_that_is_off_is_noted_and_a_wrong_one_refused() {
    let none = [EMPTY, &[0; 8]].concat();
    assert_eq!(read(server(INFO, marked(&none), false)).unwrap().1["rdb"]["checksum"], false);
    let mut wrong = with_sum(EMPTY);
    wrong[12] ^= 1;
    assert!(refusal(marked(&wrong)).contains("its checksum is"));
    // What is not understood is stored if the checksum vouches for it, and refused if nothing does.
    let strange = b"REDIS0099\xfe\x00\xf2unheard of";
    let facts = read(server(INFO, marked(&with_sum(strange)), false)).unwrap().1;
    assert!(facts["rdb"]["uncounted"].as_str().unwrap().contains("242"), "{facts}");
    assert!(refusal(marked(&[&strange[..], &[0; 8]].concat())).contains("242"));
}

#[test]
fn a_transfer_that_breaks_off_is_not_a_backup() {
    let whole = marked(&with_sum(EMPTY));
    for cut in [1, 39, 40, 41, 48, 56] {
        let text = refusal(&whole[..whole.len() - cut]);
        assert!(text.contains("ended within a full sync") && text.contains("earlier snapshots stand"), "{cut}: {text}");
    }
    assert!(refusal(b"$100\r\nREDIS0010").contains("ended within a full sync"));
    assert!(refusal(b"\n\n").contains("before it began"));
    assert!(refusal(b"$EOF:short\r\n").contains("40 characters"));
    assert!(refusal(b"$9\r\nREDIS0010").contains("cut off"));
    assert!(refusal(b"$5\r\nhello").contains("cut off"));
    assert!(refusal(marked(b"this is no such file at all")).contains("no RDB file"));
    let followed = [with_sum(EMPTY), b"more".to_vec()].concat();
    assert!(refusal(marked(&followed)).contains("more bytes follow"));
}

#[test]
fn refusals_say_what_to_do() {
    let sync = |text: &str| refusal(format!("-{text}\r\n"));
    assert!(sync("LOADING Redis is loading the dataset in memory").contains("still loading"));
    assert!(sync("NOMASTERLINK Can't SYNC while not connected with my master").contains("lost its master"));
    assert!(sync("NOPERM this user has no permissions to run the 'sync' command").contains("ACL SETUSER"));
    assert!(sync("ERR unknown command 'SYNC'").contains("[source.redis] file"));
    let info = |info: &'static str| said(&server(info, Vec::new(), false).next().unwrap_err());
    assert!(info("redis_version:7.0.15\r\nloading:1\r\n").contains("still loading"));
    assert!(info("redis_version:7.0.15\r\nrole:slave\r\nmaster_link_status:down\r\n").contains("lost its master"));
    assert!(info("hello\r\n").contains("does not tell its version"));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut source =
        Redis::open(&format!("redis://{nobody}"), None, Options::default(), Arc::new(SystemClock)).unwrap();
    assert!(said(&source.next().unwrap_err()).contains("cannot reach"));
}
