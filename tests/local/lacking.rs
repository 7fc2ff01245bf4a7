//! A host without what the torrent engine needs: local images do not need it.

use super::rig::{Rig, text};
use std::fs;
use std::process::Command;

/// Becomes its arguments, in a kernel that has no IPv6 for all that they see.
const NO_IPV6: &str = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
socket, word = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}[platform.machine()]
code = lambda op, jt, jf, k: struct.pack("HBBI", op, jt, jf, k)
# socket(AF_INET6, ...) is EAFNOSUPPORT, the rest is allowed.
program = b"".join([
    code(0x20, 0, 0, 4), code(0x15, 0, 4, word), code(0x20, 0, 0, 0), code(0x15, 0, 2, socket),
    code(0x20, 0, 0, 16), code(0x15, 1, 0, 10), code(0x06, 0, 0, 0x7FFF0000), code(0x06, 0, 0, 0x50000 | 97)])
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(buffer)))) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;

const LINK: &str = concat!(
    "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&x.bbt=",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
);

/// Runs `program` where `what` is not there.
fn without(what: &str, rig: &Rig, program: &str) -> Command {
    if what == "IPv6" {
        let mut command = Command::new("python3");
        command.args(["-c", NO_IPV6, program]);
        return command;
    }
    fs::write(rig.path("no-certificates"), "").unwrap();
    let mut command = Command::new(program);
    command
        .env("SSL_CERT_FILE", rig.path("no-certificates"))
        .env("SSL_CERT_DIR", rig.make_dir("empty"));
    command
}

#[test]
fn a_daemon_without_a_swarm_has_local_images_and_says_what_is_missing() {
    for what in ["IPv6", "ca-certificates"] {
        let mut rig = Rig::new();
        let daemon = without(what, &rig, env!("CARGO_BIN_EXE_blockbtd"));
        rig.start_daemon_by(daemon, None);
        rig.ok(&["create", "web", "--size", "64M"]);
        let mnt = rig.make_dir("mnt");
        rig.ok(&["mount", "web", text(&mnt)]);
        fs::write(mnt.join("file"), "1").unwrap();
        rig.ok(&["umount", "web"]);
        rig.ok(&["commit", "web"]);
        let published = rig.json(&["publish", "web"]);
        let because = published["not_seeding_because"].as_str().unwrap();
        assert!(published["seeding"] == false && because.contains(what), "{published}");
        for words in [&["pull", LINK][..], &["peers"]] {
            let why = rig.fails(words, 1);
            assert!(why.contains("the daemon has no swarm") && why.contains(what), "{why}");
        }
        rig.stop_daemon();
        let log = fs::read_to_string(rig.path("daemon.log")).unwrap();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(what), "{log}");
        // A command of its own says it itself.
        let mut alone = without(what, &rig, env!("CARGO_BIN_EXE_blockbt-ctl"));
        let said = alone.arg("--root").arg(rig.root()).args(["pull", LINK]).output().unwrap();
        let err = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(1) && err.contains(what), "{err}");
        rig.assert_sound("without a swarm");
    }
}
