use super::*;
use crate::ids::ImageName;
use crate::service::{Handler, Info, List, ListReply, Progress, Quiet, Reply, Request, RmReply};
use crate::units::Bytes;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longer than anything takes on a slow and busy machine.
const LONG: Duration = Duration::from_secs(300);

/// A store's stand-in: the image's name says what is to happen.
#[derive(Default)]
struct Fake {
    running: AtomicUsize,
    most: AtomicUsize,
    cancelled: AtomicBool,
    /// What is "slow" may end.
    may_end: AtomicBool,
}

impl Handler for Fake {
    fn handle(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError> {
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let reply = self.act(request, progress);
        self.running.fetch_sub(1, Ordering::SeqCst);
        reply
    }
}

impl Fake {
    fn act(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError> {
        match request {
            Request::List(_) => Ok(Reply::List(ListReply {
                images: vec![],
                unreadable: vec![],
            })),
            Request::Info(info) => {
                let error = ServiceError::new(ErrorKind::NotFound, format!("no image \"{}\"", info.name));
                Err(error.because(Some(&std::io::Error::from(std::io::ErrorKind::NotFound))))
            }
            Request::Rm(rm) => {
                match rm.name.as_str() {
                    "bug" => panic!("on purpose"),
                    "slow" => {
                        let mut done = 0;
                        wait_for(|| {
                            progress.update("sweep", done, Some(8));
                            done = (done + 1).min(8);
                            self.may_end.load(Ordering::SeqCst)
                        });
                    }
                    "endless" => {
                        wait_for(|| {
                            progress.update("wait", 0, None);
                            progress.cancelled()
                        });
                        self.cancelled.store(true, Ordering::SeqCst);
                    }
                    // Not alone, once.
                    _ => {
                        wait_for(|| self.most.load(Ordering::SeqCst) > 1);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                Ok(Reply::Rm(RmReply {
                    name: rm.name,
                    dry_run: rm.dry_run,
                    unreferenced_objects: 0,
                    unreferenced_bytes: Bytes(0),
                }))
            }
            other => panic!("{}", other.verb()),
        }
    }
}

/// A daemon in this process; stops when dropped.
struct Daemon {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(limits: Limits) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path()).unwrap();
        let listener = claim.listen().unwrap();
        let fake = Arc::new(Fake::default());
        let (stop, stopped) = watch::channel(false);
        let handler = fake.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime
                .block_on(Server::new(handler, "/store".into(), limits).serve(listener, stopped))
                .unwrap();
            drop(claim);
        });
        Daemon {
            dir,
            fake,
            stop,
            thread: Some(thread),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET_NAME)
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// What the daemon answers to these very bytes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // It may answer and hang up before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post(&self, path: &str, body: &[u8]) -> String {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn lives(&self) {
        let reply = self.client().handle(Request::List(List {}), &Quiet).unwrap();
        assert!(matches!(reply, Reply::List(_)));
    }

    fn stop(&mut self) {
        self.fake.may_end.store(true, Ordering::SeqCst);
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// No client is too slow for it, and no verb.
fn patient() -> Limits {
    Limits {
        request_time: LONG,
        stop_time: LONG,
        ..Limits::default()
    }
}

fn rm(name: &str) -> Request {
    Request::Rm(crate::service::Rm {
        name: ImageName::new(name).unwrap(),
        dry_run: false,
    })
}

#[test]
fn errors_arrive_with_kind_causes_and_status() {
    let daemon = Daemon::start(patient());
    let request = Request::Info(Info {
        dm: false,
        name: ImageName::new("x").unwrap(),
    });
    let error = daemon.client().handle(request, &Quiet).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(error.to_string(), "no image \"x\": entity not found");
    let answer = daemon.post("/v1/info", br#"{"name":"x"}"#);
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("application/x-ndjson"),
        "{answer}"
    );
}

#[test]
fn hostile_requests_get_an_answer_and_the_daemon_lives() {
    let daemon = Daemon::start(patient());
    for (path, body, status, text) in [
        ("/v1/info", &b"{"[..], "400", "EOF"),
        ("/v1/info", b"\xff\xfe", "400", "arguments of info"),
        ("/v1/info", br#"{"name":"../x"}"#, "400", "image name"),
        ("/v1/info", br#"{"name":"x","y":1}"#, "400", "unknown field"),
        ("/v1/info", "[".repeat(1 << 19).as_bytes(), "400", "arguments of info"),
        ("/v1/info", &[b'x'; (1 << 20) + 1], "413", "more than 1048576 bytes"),
        ("/v1/fly", b"{}", "404", "no verb"),
        ("/v1/%00", b"{}", "404", "no verb"),
        ("/", b"{}", "404", "want POST"),
        ("/v1/a/b/c", b"{}", "404", "want POST"),
    ] {
        let answer = daemon.post(path, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text),
            "{path}: {answer}"
        );
    }
    for bytes in [&b"\0\0\0\0\r\n\r\n"[..], b"GET / HTTP/9\r\n\r\n", &[b'A'; 1 << 20]] {
        daemon.raw(bytes);
    }
    daemon.raw(b"POST /v1/info HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\nConnection: close\r\n\r\n{");
    assert!(
        daemon
            .raw(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .contains(env!("CARGO_PKG_VERSION"))
    );
    daemon.lives();
}

#[test]
fn a_bug_in_a_verb_is_an_error_and_the_daemon_lives() {
    let daemon = Daemon::start(patient());
    let error = daemon.client().handle(rm("bug"), &Quiet).unwrap_err();
    assert!(error.message.contains("met a bug"), "{error}");
    daemon.lives();
}

#[test]
fn progress_arrives_in_order_and_before_the_reply() {
    struct Seen(Mutex<Vec<u64>>, Arc<Fake>);
    impl Progress for Seen {
        fn update(&self, step: &str, done: u64, total: Option<u64>) {
            assert_eq!((step, total), ("sweep", Some(8)));
            let mut seen = self.0.lock().unwrap();
            seen.push(done);
            self.1.may_end.store(seen.len() >= 2, Ordering::SeqCst);
        }
    }
    let daemon = Daemon::start(patient());
    let seen = Seen(Mutex::default(), daemon.fake.clone());
    daemon.client().handle(rm("slow"), &seen).unwrap();
    let seen = seen.0.into_inner().unwrap();
    assert!(seen.len() >= 2 && seen.is_sorted(), "{seen:?}");
}

#[test]
fn twenty_clients_at_once_wait_their_turn() {
    let daemon = Daemon::start(Limits {
        long_verbs: 3,
        ..patient()
    });
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| daemon.client().handle(rm("x"), &Quiet).unwrap());
        }
    });
    let most = daemon.fake.most.load(Ordering::SeqCst);
    assert!(most <= 3, "{most} at once");
}

#[test]
fn list_answers_while_long_verbs_fill_their_turns() {
    let daemon = Daemon::start(Limits {
        long_verbs: 1,
        ..patient()
    });
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.client().handle(rm("slow"), &Quiet).unwrap());
        while daemon.fake.running.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        daemon.lives();
        assert_eq!(daemon.fake.running.load(Ordering::SeqCst), 1, "the long one was still running");
        daemon.fake.may_end.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_client_that_vanishes_cancels_what_waits() {
    let daemon = Daemon::start(patient());
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream
        .write_all(b"POST /v1/rm HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"name\":\"endless\"}")
        .unwrap();
    let mut first = [0; 64];
    assert!(stream.read(&mut first).unwrap() > 0);
    drop(stream);
    wait_for(|| daemon.fake.cancelled.load(Ordering::SeqCst));
}

#[test]
fn a_client_that_sends_nothing_more_is_let_go_and_harms_nobody() {
    let daemon = Daemon::start(Limits {
        request_time: Duration::from_millis(200),
        ..Limits::default()
    });
    let head = daemon.raw(b"POST /v1/info HT");
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    // Whoever comes is let go unheard where the machine gives him no time for his head.
    let mut body = String::new();
    wait_for(|| {
        body = daemon.raw(b"POST /v1/info HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{");
        !body.is_empty()
    });
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
    wait_for(|| daemon.client().handle(Request::List(List {}), &Quiet).is_ok());
}

#[test]
fn a_stop_ends_what_waits_and_finishes_what_works() {
    let mut daemon = Daemon::start(patient());
    let (waiting, working) = (daemon.client(), daemon.client());
    let waiting = std::thread::spawn(move || waiting.handle(rm("endless"), &Quiet));
    let working = std::thread::spawn(move || working.handle(rm("slow"), &Quiet));
    wait_for(|| daemon.fake.running.load(Ordering::SeqCst) == 2);
    daemon.stop.send_replace(true);
    wait_for(|| daemon.fake.cancelled.load(Ordering::SeqCst));
    // The one that works is told that it may end.
    daemon.stop();
    assert!(waiting.join().unwrap().is_ok() && working.join().unwrap().is_ok());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_second_daemon_is_refused_and_does_not_touch_the_socket() {
    let daemon = Daemon::start(patient());
    assert!(matches!(Claim::take(daemon.dir.path()), Err(ClaimError::Taken { .. })));
    daemon.lives();
}

#[test]
fn a_dead_daemons_socket_is_nobody_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    assert!(Client::find(&run_dir).unwrap().is_none());
    std::fs::create_dir(&run_dir).unwrap();
    // As after kill -9: the file is there, the lock is not.
    drop(std::os::unix::net::UnixListener::bind(run_dir.join(SOCKET_NAME)).unwrap());
    // A child that another test's thread has just forked may hold the listener for a moment yet.
    wait_for(|| Client::find(&run_dir).unwrap().is_none());
    let claim = Claim::take(&run_dir).unwrap();
    let _listener = claim.listen().unwrap();
    assert!(Client::find(&run_dir).unwrap().is_some());
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(run_dir.clone()), mode(run_dir.join(SOCKET_NAME))), (0o700, 0o600));
}

#[test]
fn a_daemon_that_breaks_off_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"reply\":{}}\n",
        "",
    ] {
        let client = Client::connect(&socket).unwrap();
        let server = listener.accept().unwrap().0;
        let daemon = std::thread::spawn(move || {
            let mut server = server;
            let _ = server.read(&mut [0; 4096]);
            let _ = server.write_all(answer.as_bytes());
        });
        let error = client.handle(Request::List(List {}), &Quiet).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "daemon"), "{answer}");
        daemon.join().unwrap();
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < give_up, "waited for {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
