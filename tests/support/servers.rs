//! Real S3 servers, each started once per test binary, on loopback, in a fresh directory, with ports of its own.
//! `scripts/test-servers` installs them; a missing one fails the test.

use blackstart::bridge::Store;
use blackstart::storage::s3::{Credentials, Options, S3};
use blackstart::storage::{Key, Kind};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub const ACCESS_KEY: &str = "testkey";
pub const SECRET_KEY: &str = "testsecret";
pub const BUCKET: &str = "bucket";

pub struct Server {
    pub port: u16,
    /// Zero where there is none.
    pub tls_port: u16,
    /// `ca.pem` in it is what a client of `tls_port` must trust.
    pub directory: PathBuf,
    /// Its standard input is the leash, see `start`.
    _guard: Child,
}

impl Server {
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Options for a prefix that no one else has.
    pub fn options(&self) -> Options {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Options {
            prefix: format!("test/{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            endpoint: Some(self.endpoint()),
            path_style: true,
            credentials: Some(Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() }),
            ..Options::new(BUCKET)
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    /// Waits until a write succeeds: the port answers long before that.
    fn wait_until_ready(self, name: &str) -> Server {
        let options = Options { request_time: Duration::from_secs(5), ..self.options() };
        let started = Instant::now();
        let key = Key::new("ready");
        loop {
            match connect(options.clone()).create(&key, "ready".into(), &Sha256::digest("ready").into()) {
                Ok(_) => return self,
                // A write that came back too late has been carried out all the same.
                Err(error) if error.kind == Kind::AlreadyExists => return self,
                Err(error) if started.elapsed() > Duration::from_secs(60) => {
                    panic!("{name} takes no writes: {error}: {:?}\n{}", error.source, self.log());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

/// A handle on an S3 store without retries.
pub fn connect(options: Options) -> Store {
    Store::start(async { Ok(Arc::new(S3::connect(options).await?) as _) }).unwrap()
}

/// Who may do only what a bucket policy allows: `ROLEkey` with `ROLEsecret`.
pub const ROLES: [&str; 4] = ["agent", "keeper", "restorer", "watcher"];

fn role_identity(role: &str) -> String {
    format!(
        r#",{{"name":"{role}","credentials":[{{"accessKey":"{role}key","secretKey":"{role}secret"}}],"actions":[]}}"#
    )
}

/// SeaweedFS: conditional writes, checksums and paging as on AWS.
pub fn seaweedfs() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut weed = Command::new(installed("weed"));
        let directory = fresh_directory("seaweedfs");
        let identity = format!(
            r#"{{"identities":[{{"name":"admin","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],
                "actions":["Admin","Read","Write","List","Tagging"]}}{}]}}"#,
            ROLES.map(role_identity).concat()
        );
        fs::write(directory.join("s3.json"), identity).unwrap();
        weed.arg("server").args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
        weed.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]);
        // The defaults run out of volumes after a few buckets.
        weed.args(["-volume.max=0", "-master.volumeSizeLimitMB=256"]).env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1");
        for path in ["dir=.", "s3.config=s3.json", "s3.cert.file=leaf.pem", "s3.key.file=leaf.key", "filer.localSocket=filer.sock", "s3.localSocket=s3.sock"] {
            let (flag, name) = path.split_once('=').unwrap();
            weed.arg(format!("-{flag}={}", directory.join(name).display()));
        }
        certify(&directory);
        let ports = free_ports::<9>();
        weed.arg(format!("-s3.port.https={}", ports[8]));
        for (part, ports) in ["master", "volume", "filer", "s3"].into_iter().zip(ports.chunks_exact(2)) {
            weed.arg(format!("-{part}.port={}", ports[0])).arg(format!("-{part}.port.grpc={}", ports[1]));
        }
        Server { tls_port: ports[8], ..start(weed, directory, ports[6]) }.wait_until_ready("SeaweedFS")
    })
}

/// A bucket of SeaweedFS with versioning and Object Lock, made on first use.
pub fn versioned_bucket() -> &'static str {
    const NAME: &str = "versioned-bucket";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        administer(seaweedfs(), |client| async move {
            client.create_bucket().bucket(NAME).object_lock_enabled_for_bucket(true).send().await.unwrap();
        });
    });
    NAME
}

/// A client of our own, for what blackstart never asks for.
pub fn administer<F: Future<Output = ()>>(server: &Server, work: impl FnOnce(aws_sdk_s3::Client) -> F) {
    let keys = aws_sdk_s3::config::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
    let settings = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .endpoint_url(server.endpoint())
        .region(aws_sdk_s3::config::Region::from_static("us-east-1"))
        .force_path_style(true)
        .credentials_provider(keys);
    let client = aws_sdk_s3::Client::from_conf(settings.build());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work(client));
}

/// rclone's S3 server, which silently ignores the conditions of conditional writes.
pub fn rclone() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut rclone = Command::new(installed("rclone"));
        let directory = fresh_directory("rclone");
        let data = directory.join("data");
        fs::create_dir_all(data.join(BUCKET)).unwrap();
        let [port] = free_ports();
        rclone.args(["serve", "s3", "--config", "/dev/null", "--addr", &format!("127.0.0.1:{port}")]);
        rclone.arg("--auth-key").arg(format!("{ACCESS_KEY},{SECRET_KEY}")).arg(data);
        start(rclone, directory, port).wait_until_ready("rclone")
    })
}

/// moto, which knows archives: it refuses to read them until they are thawed. It checks neither checksums nor credentials.
pub fn moto() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut moto = Command::new(installed("moto_server"));
        let directory = fresh_directory("moto");
        let [port] = free_ports();
        moto.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let server = start(moto, directory, port);
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "moto does not answer: {}", server.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        administer(&server, |client| async move {
            client.create_bucket().bucket(BUCKET).send().await.unwrap();
        });
        server.wait_until_ready("moto")
    })
}

/// A tool that `scripts/test-servers` installs.
pub fn installed(tool: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers/venv");
    let tool = std::env::var_os("BLACKSTART_TEST_SERVERS").map_or_else(default, PathBuf::from).join("bin").join(tool);
    assert!(
        tool.exists(),
        "{} is missing: run scripts/test-servers, which installs the servers for tests",
        tool.display()
    );
    tool
}

pub fn fresh_directory(name: &str) -> PathBuf {
    tempfile::Builder::new().prefix(&format!("blackstart-{name}-")).tempdir().unwrap().keep()
}

/// Runs `server` on a leash: a shell waits for the end of its input, which comes when this process ends, however it ends.
/// Then it kills the server by its pid (nothing of it is worth an orderly end) and removes the directory.
pub fn start(server: Command, directory: PathBuf, port: u16) -> Server {
    const LEASH: &str = r#""$@" & server=$!; read -r _; kill -9 "$server"; wait "$server"; rm -rf "$0""#;
    let log = File::create(directory.join("log")).unwrap();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(LEASH).arg(&directory).arg(server.get_program()).args(server.get_args());
    shell.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).current_dir(&directory).process_group(0);
    Server { port, tls_port: 0, directory, _guard: shell.spawn().unwrap() }
}

/// A certificate authority and a certificate for 127.0.0.1: `ca.pem`, `leaf.pem`, `leaf.key`.
pub fn certify(directory: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("openssl is missing: run scripts/test-servers");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("{new} -subj /CN=test-ca -keyout ca.key -out ca.pem"));
    let leaf = "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    openssl(&format!("{new} -subj /CN=test {leaf} -CA ca.pem -CAkey ca.key -keyout leaf.key -out leaf.pem"));
}

/// Ports that nobody else is given: below those that the kernel hands out to whoever asks for any, or connects to somebody.
pub fn free_ports<const N: usize>() -> [u16; N] {
    const RANGE: std::ops::Range<u32> = 16_000..32_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Other processes of tests begin elsewhere.
    let first = std::process::id().wrapping_mul(61);
    let next = || loop {
        let n = first.wrapping_add(GIVEN.fetch_add(1, Ordering::SeqCst)) % (RANGE.end - RANGE.start);
        let port = u16::try_from(RANGE.start + n).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    };
    [(); N].map(|()| next())
}
