//! The client: every way to be let in or kept out, queries, copies.

use crate::support::postgres::{Cluster, MAJORS, Setup};
use blackstart::error::{help_of, kind_of};
use blackstart::source::postgres::client::{Address, Client, Event, ServerError, Session};
use std::process::Command;
use std::time::Duration;

fn connect(url: &str, session: Session) -> anyhow::Result<Client> {
    Client::connect(&Address::parse(url)?, session)
}

/// Message, causes and help of a connection that must not come about.
fn refused(url: &str, session: Session) -> String {
    let error = connect(url, session).map(|_| ()).expect_err(url);
    format!("{error:#} | {}", help_of(&error).unwrap_or_default())
}

#[test]
fn every_major_answers_queries_and_replication_commands() {
    for major in MAJORS {
        let cluster = Cluster::new(major);
        let mut sql = cluster.client();
        assert_eq!(sql.version() / 10_000, major);
        let rows = sql.rows("select 1, null, 'ä''' union all select 2, 'x', ''").unwrap();
        assert_eq!(rows.rows[0].parse::<i32>(0).unwrap(), 1);
        assert_eq!((rows.rows[0].text(1).unwrap(), rows.rows[0].text(2).unwrap()), (None, Some("ä'")));
        assert_eq!(rows.rows[1].required(2).unwrap(), "");
        let error = sql.query("select 1; select 1/0; select 2").unwrap_err();
        assert_eq!(ServerError::of(&error).unwrap().code, "22012");
        assert_eq!(sql.value("select 3").unwrap().unwrap(), "3", "usable after an error");
        let mut walsender = connect(&cluster.url("postgres"), Session::Replication).unwrap();
        let identity = walsender.rows("IDENTIFY_SYSTEM").unwrap();
        let system = sql.value("select system_identifier from pg_control_system()").unwrap().unwrap();
        assert_eq!(identity.one().unwrap().required(0).unwrap(), system);
        assert_eq!(walsender.value("SHOW wal_segment_size").unwrap().unwrap(), "16MB");
    }
}

#[test]
fn copies_run_in_both_directions_and_a_wait_loses_nothing() {
    let cluster = Cluster::new(15);
    let mut client = cluster.client();
    client.query("create table t (n int, pad text)").unwrap();
    client.begin("copy t from stdin").unwrap();
    assert_eq!(client.next().unwrap(), Event::CopyIn);
    let lines: String = (0..50_000).map(|n| format!("{n}\t{}\n", "x".repeat(50))).collect();
    for part in lines.as_bytes().chunks(100_000) {
        client.send(part).unwrap();
    }
    client.send_done().unwrap();
    assert_eq!((client.next().unwrap(), client.next().unwrap()), (Event::Complete, Event::Ready));
    client.begin("copy t to stdout").unwrap();
    assert_eq!(client.next().unwrap(), Event::CopyOut);
    let mut back = Vec::new();
    loop {
        // Too short on purpose: a poll that runs out must leave half a message where it is.
        match client.poll(Duration::from_micros(1)).unwrap() {
            None => {}
            Some(Event::Data) => back.extend_from_slice(client.body()),
            Some(Event::CopyDone) => break,
            Some(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(back, lines.as_bytes());
}

#[test]
fn a_command_can_be_cancelled_and_silence_ends() {
    let cluster = Cluster::new(15);
    let mut client = cluster.client();
    client.begin("select pg_sleep(60)").unwrap();
    // A server that has not begun yet has nothing to cancel.
    let begun = std::time::Instant::now();
    let asleep = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'";
    while cluster.value(asleep) != "1" {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    client.cancel().unwrap();
    let error = loop {
        match client.next() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(ServerError::of(&error).unwrap().code, "57014");
    assert_eq!(client.next().unwrap(), Event::Ready);
    client.patience = Duration::from_millis(100);
    let error = client.query("select pg_sleep(60)").unwrap_err();
    assert!(format!("{error:#}").contains("silent"), "{error:#}");
}

const PASSWORDS: &str = "host all scram 127.0.0.1/32 scram-sha-256\nhost replication scram 127.0.0.1/32 scram-sha-256\n\
     host all old 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\nhost all nobody 127.0.0.1/32 reject";

#[test]
fn passwords_and_refusals_name_the_cure() {
    let cluster = Setup { hba: PASSWORDS.into(), ..Setup::new(15) }.start();
    cluster.sql(
        "create role scram login password 'pä55' ; create role clear login password 'c'; \
         set password_encryption = md5; create role old login password 'm'",
    );
    for (user, password) in [("scram", "p%C3%A455"), ("old", "m"), ("clear", "c")] {
        let url = cluster.tcp_url(&format!("{user}:{password}"), "");
        let mut client = connect(&url, Session::Plain).unwrap();
        assert_eq!(client.value("select current_user").unwrap().unwrap(), user);
        let wrong = refused(&cluster.tcp_url(&format!("{user}:hunter2"), ""), Session::Plain);
        assert!(wrong.contains("28P01") && wrong.contains("is wrong") && !wrong.contains("hunter2"), "{wrong}");
    }
    let none = connect(&cluster.tcp_url("scram", ""), Session::Plain).map(|_| ()).unwrap_err();
    assert_eq!(kind_of(&none), blackstart::error::Kind::Config);
    let right = refused(&cluster.tcp_url("scram:p%C3%A455", ""), Session::Replication);
    assert!(right.contains("alter role scram replication"), "{right}");
    let hba = refused(&cluster.tcp_url("nobody", ""), Session::Plain);
    assert!(hba.contains("pg_hba.conf"), "{hba}");
    let role = refused(&cluster.url("ghost"), Session::Plain);
    assert!(role.contains("create role ghost"), "{role}");
    let binding = refused(&cluster.tcp_url("scram:p%C3%A455", "?channel_binding=require"), Session::Plain);
    assert!(binding.contains("channel_binding=require"), "{binding}");
}

#[test]
fn no_place_for_replication_is_told_apart() {
    let cluster = Setup::new(15).config("max_wal_senders = 1").start();
    let _taken = connect(&cluster.url("postgres"), Session::Replication).unwrap();
    let said = refused(&cluster.url("postgres"), Session::Replication);
    assert!(said.contains("max_wal_senders"), "{said}");
}

/// A certificate authority and a certificate for localhost, beside the cluster's data.
fn certify(cluster: &Cluster) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&cluster.data).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("{new} -subj /CN=ca -keyout ca.key -out ca.pem"));
    let leaf = "-addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE";
    openssl(&format!("{new} -subj /CN=pg {leaf} -CA ca.pem -CAkey ca.key -keyout server.key -out server.crt"));
    crate::support::postgres::own_all(&cluster.data);
}

#[test]
fn tls_proves_what_was_asked_and_binds_the_password_to_it() {
    let hba = "hostssl all scram 127.0.0.1/32 scram-sha-256\nhost all scram 127.0.0.1/32 reject";
    let mut cluster = Setup { hba: hba.into(), ..Setup::new(15) }.start();
    cluster.sql("create role scram login password 'p'");
    let plain = refused(&cluster.tcp_url("scram:p", "?sslmode=require"), Session::Plain);
    assert!(plain.contains("no TLS"), "{plain}");
    cluster.stop();
    certify(&cluster);
    cluster.configure("ssl = on");
    cluster.start();
    let ca = cluster.data.join("ca.pem").display().to_string();
    let by_name = |tail: String| format!("postgres://scram:p@localhost:{}/postgres{tail}", cluster.port);
    let let_in = |url: &str| {
        let mut client = connect(url, Session::Plain).unwrap();
        client.value("select ssl from pg_stat_ssl where pid = pg_backend_pid()").unwrap().unwrap()
    };
    // No mode: this machine, so TLS where it can be had.
    assert_eq!(let_in(&cluster.tcp_url("scram:p", "")), "t");
    assert_eq!(let_in(&cluster.tcp_url("scram:p", "?sslmode=require&channel_binding=require")), "t");
    assert_eq!(let_in(&by_name(format!("?sslmode=verify-full&sslrootcert={ca}&channel_binding=require"))), "t");
    assert_eq!(let_in(&cluster.tcp_url("scram:p", &format!("?sslmode=verify-ca&sslrootcert={ca}"))), "t");
    let name = refused(&cluster.tcp_url("scram:p", &format!("?sslmode=verify-full&sslrootcert={ca}")), Session::Plain);
    assert!(name.contains("sslmode=verify-ca"), "{name}");
    let chain = refused(&by_name("?sslmode=verify-ca".into()), Session::Plain);
    assert!(chain.contains("sslrootcert"), "{chain}");
    let disabled = refused(&cluster.tcp_url("scram:p", "?sslmode=disable"), Session::Plain);
    assert!(disabled.contains("28000"), "{disabled}");
}

/// Answers one connection: no TLS, then these bytes whatever is asked.
fn fake(answer: Vec<u8>) -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 8];
        socket.read_exact(&mut request).unwrap();
        socket.write_all(b"N").unwrap();
        let mut length = [0; 4];
        socket.read_exact(&mut length).unwrap();
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut startup).unwrap();
        socket.write_all(&answer).unwrap();
        // Until the client has gone.
        let _ended = socket.read(&mut length);
    });
    port
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

#[test]
fn servers_that_are_too_old_or_none_at_all_are_told_apart() {
    let let_in = message(b'R', &[0; 4]);
    let said = |answer: Vec<u8>| refused(&format!("postgres://u@127.0.0.1:{}/d", fake(answer)), Session::Plain);
    let old = [let_in.clone(), message(b'S', b"server_version\x0012.22\0"), message(b'Z', b"I")].concat();
    let old = said(old);
    assert!(old.contains("PostgreSQL 12.22, and 13 is the oldest"), "{old}");
    let new = [let_in.clone(), message(b'S', b"server_version\x0019beta3\0"), message(b'Z', b"I")].concat();
    let port = fake(new);
    let client = connect(&format!("postgres://u@127.0.0.1:{port}/d"), Session::Plain).unwrap();
    assert_eq!(client.version(), 190_000);
    let huge = said([let_in.clone(), vec![b'S', 0x7f, 0xff, 0xff, 0xff]].concat());
    assert!(huge.contains("a message of 2147483647 bytes"), "{huge}");
    let other = said(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    assert!(other.contains("bytes") || other.contains("unknown type"), "{other}");
    // A row that promises more than it has.
    let cut =
        [let_in, message(b'S', b"server_version\x0015.1\0"), message(b'Z', b"I"), message(b'T', b"\0\x01n\0")].concat();
    let mut client = connect(&format!("postgres://u@127.0.0.1:{}/d", fake(cut)), Session::Plain).unwrap();
    assert!(format!("{:#}", client.query("select 1").unwrap_err()).contains("cut short"));
}
