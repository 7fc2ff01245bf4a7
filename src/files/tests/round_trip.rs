//! Real trees, against GNU tar, Python's tarfile and rsync. Needs root: devices, owners, capabilities.

use super::{Place, open_root};
use crate::files::{Source, source, tar_in, tar_out, tree_in};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// rsync sees no difference, and neither do times to the nanosecond, attributes of every kind and blocks in use.
fn assert_same(a: &Path, b: &Path) {
    let slashed = |path: &Path| format!("{}/", path.display());
    let lines = run("rsync", &["-aHAXn", "--delete", "--checksum", "-i", &slashed(a), &slashed(b)]);
    assert_eq!(lines, "", "{} and {} differ", a.display(), b.display());
    let list = |path: &Path| {
        let format = "%P %y %m %U %G %s %T@ %l %n\\n";
        let listed = run("find", &[path.to_str().unwrap(), "!", "-type", "s", "-printf", format]);
        let mut lines: Vec<String> = listed.lines().filter(|line| !line.starts_with(" d")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // The size of a directory is the host's own affair; blank it.
    let without_directory_size = |lines: Vec<String>| -> Vec<String> {
        lines
            .into_iter()
            .map(|line| {
                let mut words: Vec<&str> = line.split(' ').collect();
                if words.get(1) == Some(&"d") {
                    words[5] = "-";
                }
                words.join(" ")
            })
            .collect()
    };
    assert_eq!(without_directory_size(list(a)), without_directory_size(list(b)));
    let attributes = |path: &Path| {
        let text = Command::new("getfattr")
            .args(["-R", "-h", "-P", "-d", "-m", "-", "-e", "hex", "."])
            .current_dir(path)
            .output()
            .unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        let mut parts: Vec<String> = text.split("\n\n").map(str::to_owned).collect();
        parts.sort();
        parts
    };
    assert_eq!(attributes(a), attributes(b));
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos as _,
    };
    utimensat(
        CWD,
        path,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// One of everything.
fn make_tree(at: &Path) {
    let path = |name: &str| at.join(name);
    let attribute = |name: &str, key: &str, value: &[u8]| lsetxattr(path(name), key, value, XattrFlags::empty()).unwrap();
    fs::create_dir_all(path("usr/lib")).unwrap();
    symlink("usr/lib", path("lib")).unwrap();
    lchown(path("lib"), Some(7), Some(8)).unwrap();
    fs::write(path("usr/lib/libx"), vec![5; 3_000_000]).unwrap();
    fs::write(path("empty"), "").unwrap();
    let big = fs::File::create(path("sparse")).unwrap();
    big.set_len(48 << 20).unwrap();
    for offset in [0, 1 << 20, (30 << 20) + 4096, (40 << 20) + 77] {
        big.write_all_at(b"islands", offset).unwrap();
    }
    fs::File::create(path("all-hole")).unwrap().set_len(12_345_678).unwrap();
    fs::write(path("ids"), "x").unwrap();
    chown(path("ids"), Some(100_000), Some(3_000_000_000)).unwrap();
    fs::write(path("setuid"), "x").unwrap();
    chown(path("setuid"), Some(65_536), Some(1)).unwrap();
    fs::set_permissions(path("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(path("capable"), "x").unwrap();
    // cap_net_raw=ep, revision 2
    attribute(
        "capable",
        "security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    attribute("capable", "user.binary", b"\0\n=%\xff\n12 path=evil\n");
    attribute("capable", "user.empty", b"");
    attribute("capable", "trusted.x", b"y");
    attribute("lib", "trusted.on-a-link", b"z");
    fs::create_dir(path("sticky")).unwrap();
    fs::set_permissions(path("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(path("acl")).unwrap();
    // user::rwx, user:1000:r-x, group::r-x, mask::r-x, other::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1000),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&bits.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    fs::write(path("acl/before"), "x").unwrap();
    attribute("acl", "system.posix_acl_default", &acl);
    attribute("acl", "system.posix_acl_access", &acl);
    attribute("ids", "system.posix_acl_access", &acl);
    let node = |name: &str, kind, dev| mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o640), dev).unwrap();
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("disk", FileType::BlockDevice, makedev(259, 70_000));
    node("pipe", FileType::Fifo, 0);
    fs::hard_link(path("null"), path("null-again")).unwrap();
    fs::hard_link(path("usr/lib/libx"), path("a-hard-link")).unwrap();
    fs::hard_link(path("lib"), path("z-linked-link")).unwrap();
    let deep = path(&"deep-directory-name/".repeat(20));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("n".repeat(255)), "deep").unwrap();
    symlink("t".repeat(1000), path("long-link")).unwrap();
    fs::write(path("new\nline \u{fc} \\"), "x").unwrap();
    fs::write(path("old"), "x").unwrap();
    set_time(&path("old"), -1_000_000_000, 1);
    set_time(&path("lib"), 1_234_567_890, 123_456_789);
    set_time(&path("null"), 1, 999_999_999);
    set_time(&path("usr"), 1_111_111_111, 111_111_111);
    set_time(at, 5, 6);
}

fn same_blocks(a: &Path, b: &Path) {
    for name in ["sparse", "all-hole"] {
        let blocks = |path: &Path| fs::metadata(path.join(name)).unwrap().blocks();
        assert!(blocks(b) <= blocks(a) + 64, "{name}: {} blocks became {}", blocks(a), blocks(b));
    }
}

#[test]
fn what_gnu_tar_writes_comes_in_whole() {
    let from = Place::new();
    make_tree(&from.root());
    // GNU tar writes the second name of a device as a device of its own.
    fs::remove_file(from.root().join("null-again")).unwrap();
    set_time(&from.root(), 5, 6);
    let root = from.root();
    for extra in [
        &["--format=posix", "--sparse"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.1", "--zstd"],
    ] {
        let (file, to) = (from.dir.path().join("tar"), Place::new());
        let base = [
            "-C",
            root.to_str().unwrap(),
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-cf",
            file.to_str().unwrap(),
        ];
        run("tar", &[&base, extra, &["."]].concat());
        let Ok(Source::Tar(stream)) = source::open(&file) else {
            panic!("{extra:?}: not an archive")
        };
        tar_in::import(stream.reader, &open_root(&to.root()).unwrap(), &mut |_, _| {}).unwrap();
        assert_same(&root, &to.root());
        if extra.contains(&"--sparse") {
            same_blocks(&root, &to.root());
        }
        fs::remove_file(file).unwrap();
    }
}

/// GNU's own format has neither attributes nor nanoseconds: compared by a tree that GNU tar itself unpacked.
#[test]
fn old_gnu_and_python_archives_come_in_as_gnu_tar_unpacks_them() {
    let from = Place::new();
    make_tree(&from.root());
    fs::remove_file(from.root().join("old")).unwrap();
    let root = from.root();
    let root = root.to_str().unwrap();
    let file = from.dir.path().join("tar");
    let file = file.to_str().unwrap();
    let python = "import sys,tarfile; t=tarfile.open(sys.argv[1],'w:gz',format=int(sys.argv[3])); t.add(sys.argv[2],'.'); t.close()";
    let gnu: &[&str] = &["tar", "--format=gnu", "--sparse", "-C", root, "-cf", file, "."];
    fs::remove_file(from.root().join("sparse")).unwrap();
    let small = fs::File::create(from.root().join("sparse")).unwrap();
    small.set_len(64 << 20).unwrap();
    // More runs than fit into a header, so that extension blocks are used.
    (0..60).for_each(|i| small.write_all_at(b"run", i << 20).unwrap());
    for command in [
        gnu,
        &["python3", "-c", python, file, root, "1"],
        &["python3", "-c", python, file, root, "2"],
    ] {
        run(command[0], &command[1..]);
        let (ours, theirs) = (Place::new(), Place::new());
        run("tar", &["-C", theirs.root().to_str().unwrap(), "--numeric-owner", "-xpf", file]);
        let Ok(Source::Tar(stream)) = source::open(Path::new(file)) else {
            panic!("{command:?}: not an archive")
        };
        tar_in::import(stream.reader, &open_root(&ours.root()).unwrap(), &mut |_, _| {}).unwrap();
        assert_same(&theirs.root(), &ours.root());
    }
}

#[test]
fn what_we_export_gnu_tar_and_we_unpack_whole() {
    let (from, theirs, ours) = (Place::new(), Place::new(), Place::new());
    make_tree(&from.root());
    let file = from.dir.path().join("tar");
    let mut out = fs::File::create(&file).unwrap();
    let stats = tar_out::export(&open_root(&from.root()).unwrap(), &mut out, &mut |_, _| {}).unwrap();
    assert!(stats.bytes < 4_000_000, "{stats:?}");
    run(
        "tar",
        &[
            "-C",
            theirs.root().to_str().unwrap(),
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-xpf",
            file.to_str().unwrap(),
        ],
    );
    assert_same(&from.root(), &theirs.root());
    same_blocks(&from.root(), &theirs.root());
    tar_in::import(fs::File::open(&file).unwrap(), &open_root(&ours.root()).unwrap(), &mut |_, _| {}).unwrap();
    assert_same(&from.root(), &ours.root());
    same_blocks(&from.root(), &ours.root());
}

#[test]
fn a_directory_is_copied_whole_without_its_sockets() {
    let (from, to) = (Place::new(), Place::new());
    make_tree(&from.root());
    let _listener = std::os::unix::net::UnixListener::bind(from.root().join("usr/socket")).unwrap();
    set_time(&from.root().join("usr"), 1_111_111_111, 111_111_111);
    let stats = tree_in::import(&from.root(), &open_root(&to.root()).unwrap(), &mut |_, _| {}).unwrap();
    assert_eq!(stats.sockets_skipped, 1);
    fs::remove_file(from.root().join("usr/socket")).unwrap();
    set_time(&from.root().join("usr"), 1_111_111_111, 111_111_111);
    assert_same(&from.root(), &to.root());
    same_blocks(&from.root(), &to.root());
}

#[test]
fn a_copy_into_its_own_source_ends() {
    let place = Place::new();
    let inner = place.root().join("mnt");
    fs::create_dir(&inner).unwrap();
    fs::write(place.root().join("x"), "x").unwrap();
    let stats = tree_in::import(&place.root(), &open_root(&inner).unwrap(), &mut |_, _| {}).unwrap();
    assert_eq!(stats.entries, 2);
    assert!(inner.join("x").exists() && !inner.join("mnt").exists());
}

/// A small ext4 of its own, unmounted (and its loop device freed) when dropped.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(size: u64) -> Mounted {
        let dir = tempfile::TempDir::with_prefix("blockbt-test-files-").unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        run(
            "mount",
            &["-o", "loop", image.to_str().unwrap(), dir.path().join("mnt").to_str().unwrap()],
        );
        Mounted { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What other tests start has our descriptors for a moment.
        let done = crate::kernel::mounts::unmount(&self.root(), std::time::Duration::from_secs(60));
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
    }
}

#[test]
fn a_file_system_comes_out_without_the_lost_and_found_of_mkfs() {
    let from = Mounted::new(64 << 20);
    make_tree(&from.root());
    let to = Place::new();
    let mut bytes = Vec::new();
    tar_out::export(&open_root(&from.root()).unwrap(), &mut bytes, &mut |_, _| {}).unwrap();
    tar_in::import(bytes.as_slice(), &open_root(&to.root()).unwrap(), &mut |_, _| {}).unwrap();
    assert!(!to.root().join("lost+found").exists());
    fs::remove_dir(from.root().join("lost+found")).unwrap();
    set_time(&from.root(), 5, 6);
    assert_same(&from.root(), &to.root());
    let again = Mounted::new(64 << 20);
    tree_in::import(&to.root(), &open_root(&again.root()).unwrap(), &mut |_, _| {}).unwrap();
    fs::remove_dir(again.root().join("lost+found")).unwrap();
    set_time(&again.root(), 5, 6);
    assert_same(&from.root(), &again.root());
}

#[test]
fn a_full_disk_says_so_and_names_the_entry() {
    use super::build::Tar;
    let to = Mounted::new(4 << 20);
    let tar = Tar::new().file("fits", b"x").file("does-not", &vec![1; 8 << 20]).end();
    let error = tar_in::import(tar.as_slice(), &open_root(&to.root()).unwrap(), &mut |_, _| {}).unwrap_err();
    assert!(error.is_disk_full() && error.to_string().contains("does-not"), "{error}");
    let from = Place::new();
    fs::write(from.root().join("does-not"), vec![1; 8 << 20]).unwrap();
    let error = tree_in::import(&from.root(), &open_root(&to.root()).unwrap(), &mut |_, _| {}).unwrap_err();
    assert!(error.is_disk_full() && error.to_string().contains("does-not"), "{error}");
}
