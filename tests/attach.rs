//! Attach in user mode, with a real kernel: loop devices, FUSE, mounts, and servers that get killed.
#![cfg(feature = "root-tests")]

#[path = "common/servers.rs"]
mod servers;

use blockbt::attach::{self, AttachError, AttachOptions, Attached, Condition, Program, Step};
use blockbt::ids::{ImageId, ImageName};
use blockbt::kernel::{loops, mounts};
use blockbt::store::{ImageRecord, Intent, Store};
use blockbt::units::Bytes;
use servers::MINUTE;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const SIZE: Bytes = Bytes(256 << 20);

/// A store of its own, and a directory to mount on; all that it has attached is taken away when it goes.
struct Rig {
    dir: tempfile::TempDir,
    store: Store,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Rig { dir, store }
    }

    fn image(&self, name: &str) -> ImageName {
        let name = ImageName::new(name).unwrap();
        let txn = self.store.begin(Intent::Create { name: name.clone() }).unwrap();
        let lock = txn.new_image().unwrap();
        txn.publish_image(&ImageRecord::new(name.clone(), SIZE, "ext4")).unwrap();
        txn.done().unwrap();
        drop(lock);
        name
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn place(&self, name: &ImageName) -> PathBuf {
        self.store.run_dir().join(ImageId::of(name).to_string())
    }

    fn attach(&self, name: &ImageName) -> PathBuf {
        attach::attach(&self.store, name, &options()).unwrap().device
    }

    /// An attached image with an empty ext4.
    fn formatted(&self, name: &str) -> (ImageName, PathBuf) {
        let name = self.image(name);
        let device = self.attach(&name);
        run("mkfs.ext4", &["-q", text(&device)]);
        (name, device)
    }

    /// The same, detached, and attached once more for the caller alone.
    fn temporary(&self, name: &str) -> (ImageName, Attached) {
        let (name, _) = self.formatted(name);
        attach::detach(&self.store, &name).unwrap();
        let temporary = AttachOptions {
            temporary: true,
            ..options()
        };
        let made = attach::attach(&self.store, &name, &temporary).unwrap();
        (name, made)
    }

    /// What other tests of this process start has our descriptors for a moment, and with them our claims.
    fn await_unclaimed(&self, device: &Path) {
        let all = loops::list().unwrap();
        let found = all.iter().find(|found| found.path() == device).unwrap();
        let start = Instant::now();
        while loops::is_claimed(found.number, found.name.as_deref().unwrap()) && start.elapsed() < MINUTE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill_server(&self, name: &ImageName) {
        servers::kill_server(&self.place(name));
    }

    fn state(&self, name: &ImageName) -> Option<Condition> {
        attach::states(&self.store)
            .unwrap()
            .into_iter()
            .find(|s| s.image == ImageId::of(name))
            .map(|s| s.condition)
    }

    /// Nothing of this store is in the kernel or among the processes.
    fn assert_clean(&self, name: &ImageName) {
        let prefix = format!("blockbt-{}-", self.store.id());
        servers::await_ends(&self.place(name), &prefix);
        let left: Vec<_> = loops::list()
            .unwrap()
            .into_iter()
            .filter(|d| d.name.as_ref().is_some_and(|n| n.starts_with(&prefix)))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let (run_dir, mnt) = (self.store.run_dir(), self.mnt());
        let left: Vec<_> = mounts::list()
            .unwrap()
            .into_iter()
            .filter(|m| m.dir.starts_with(&run_dir) || m.dir.starts_with(&mnt))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(servers::servers(&self.place(name)), [0u32; 0]);
        let left: Vec<_> = fs::read_dir(self.store.run_dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for state in attach::states(&self.store).unwrap_or_default() {
            if let Some(name) = state.name {
                let _ = attach::umount(&self.store, &name).or_else(|_| attach::detach(&self.store, &name));
            }
        }
        let _ = attach::sweep(&self.store, None);
        for mount in mounts::list()
            .unwrap_or_default()
            .iter()
            .rev()
            .filter(|m| m.dir.starts_with(self.dir.path()))
        {
            let _ = mounts::unmount_lazily(&mount.dir);
        }
        let _ = fs::remove_dir_all(self.store.run_dir());
    }
}

fn options() -> AttachOptions {
    AttachOptions {
        mode: Some(blockbt::attach::Mode::User),
        program: Some(Program::at(env!("CARGO_BIN_EXE_blockbtd"))),
        ..AttachOptions::default()
    }
}

fn read_only() -> AttachOptions {
    AttachOptions {
        read_only: true,
        ..options()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the test's paths are UTF-8")
}

fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn run(program: &str, arguments: &[&str]) {
    let output = try_run(program, arguments);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {} {}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

fn write_synced(path: &Path, content: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

#[test]
fn a_file_system_is_made_used_and_found_again() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    let sectors = format!(
        "/sys/block/{}/queue/logical_block_size",
        device.file_name().unwrap().to_str().unwrap()
    );
    assert_eq!(fs::read_to_string(sectors).unwrap().trim(), "512");
    attach::detach(&rig.store, &name).unwrap();
    rig.assert_clean(&name);

    attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
    assert_eq!(rig.state(&name), Some(Condition::Attached));
    fs::write(rig.mnt().join("file"), b"hello").unwrap();
    attach::umount(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
    assert_eq!(rig.state(&name), None);

    let there = attach::mount(&rig.store, &name, &rig.mnt(), &read_only()).unwrap();
    assert_eq!(fs::read(rig.mnt().join("file")).unwrap(), b"hello");
    assert!(fs::write(rig.mnt().join("file"), b"x").is_err());
    assert!(
        OpenOptions::new()
            .write(true)
            .open(&there.device)
            .and_then(|d| {
                d.write_all_at(&[1; 512], 0)?;
                d.sync_all()
            })
            .is_err()
    );
    attach::umount(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn what_was_fsynced_is_there_after_the_server_was_killed() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    mounts::mount_device(&device, &rig.mnt(), "ext4", None, false).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    write_synced(&rig.mnt().join("kept"), &content);
    rig.kill_server(&name);
    assert_eq!(rig.state(&name), Some(Condition::Leftover));
    assert!(File::open(&device).and_then(|mut d| d.read_exact(&mut vec![0; 64 << 20])).is_err());

    // A journal that has to be replayed is said, and nothing stays behind.
    let why = attach::mount(&rig.store, &name, &rig.mnt(), &read_only()).unwrap_err();
    assert!(why.source().unwrap().to_string().contains("mount it writable once"), "{why}");
    rig.assert_clean(&name);
    let again = rig.attach(&name);
    assert!(!mounts::list().unwrap().iter().any(|m| m.dir == rig.mnt()));
    // The journal is replayed as after a power cut; a second, full check finds nothing.
    mounts::mount_device(&again, &rig.mnt(), "ext4", None, false).unwrap();
    assert_eq!(fs::read(rig.mnt().join("kept")).unwrap(), content);
    mounts::unmount(&rig.mnt(), MINUTE).unwrap();
    run("e2fsck", &["-fn", text(&again)]);
    attach::detach(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn a_killed_server_is_cleaned_by_any_verb_even_with_its_file_system_in_use() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    for verb in ["sweep", "detach", "umount", "mount"] {
        let device = if verb == "sweep" { device.clone() } else { rig.attach(&name) };
        mounts::mount_device(&device, &rig.mnt(), "ext4", None, false).unwrap();
        let user = File::create(rig.mnt().join("open")).unwrap();
        rig.kill_server(&name);
        match verb {
            "sweep" => assert_eq!(attach::sweep(&rig.store, None).unwrap(), [ImageId::of(&name)]),
            "detach" => drop(attach::detach(&rig.store, &name).unwrap()),
            "umount" => drop(attach::umount(&rig.store, &name).unwrap()),
            _ => {
                attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
                fs::write(rig.mnt().join("new"), b"x").unwrap();
                attach::umount(&rig.store, &name).unwrap();
            }
        }
        assert!(!rig.place(&name).exists(), "{verb}");
        // With its last user goes the dead device.
        drop(user);
        rig.assert_clean(&name);
    }
}

#[test]
fn a_sweep_touches_only_its_own_store() {
    let (ours, theirs) = (Rig::new(), Rig::new());
    let (name, _) = ours.formatted("web");
    let (same, device) = theirs.formatted("web");
    mounts::mount_device(&device, &theirs.mnt(), "ext4", None, false).unwrap();
    theirs.kill_server(&same);
    ours.kill_server(&name);
    assert_eq!(attach::sweep(&ours.store, None).unwrap(), [ImageId::of(&name)]);
    ours.assert_clean(&name);
    assert_eq!(theirs.state(&same), Some(Condition::Leftover));
    assert!(mounts::list().unwrap().iter().any(|m| m.dir == theirs.mnt()));
    assert_eq!(attach::sweep(&theirs.store, None).unwrap(), [ImageId::of(&same)]);
    theirs.assert_clean(&same);
}

#[test]
fn a_live_image_survives_a_sweep() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    assert!(attach::sweep(&rig.store, None).unwrap().is_empty());
    assert_eq!(rig.state(&name), Some(Condition::Attached));
    run("e2fsck", &["-fn", text(&device)]);
}

#[test]
fn a_copy_of_a_store_leaves_the_original_s_devices_alone() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    let copy = rig.dir.path().join("copy");
    run("cp", &["-a", text(rig.store.root()), text(&copy)]);
    let copy = Store::open(&copy).unwrap();
    assert!(matches!(
        attach::attach(&copy, &name, &options()),
        Err(AttachError::OtherStore { .. })
    ));
    assert!(matches!(attach::detach(&copy, &name), Err(AttachError::OtherStore { .. })));
    rig.kill_server(&name);
    assert!(attach::sweep(&copy, None).unwrap().is_empty() && attach::states(&copy).unwrap().is_empty());
    assert!(loops::list().unwrap().iter().any(|d| d.path() == device));
    assert_eq!(attach::sweep(&rig.store, None).unwrap(), [ImageId::of(&name)]);
}

#[test]
fn attaching_twice_says_where_it_is() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    match attach::attach(&rig.store, &name, &options()) {
        Err(AttachError::AlreadyAttached { device: there, .. }) => assert_eq!(there, device),
        other => panic!("{other:?}"),
    }
    attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
    match attach::mount(&rig.store, &name, &rig.mnt(), &options()) {
        Err(error @ AttachError::AlreadyMounted { .. }) => assert!(error.is_in_use()),
        other => panic!("{other:?}"),
    }
    assert!(rig.store.lock_image(&name).is_err(), "the server holds the image's lock");
    attach::umount(&rig.store, &name).unwrap();
    let start = Instant::now();
    // Other tests of this process start programs, which have our descriptors for a moment.
    while rig.store.lock_image(&name).is_err() {
        assert!(start.elapsed() < MINUTE);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(attach::umount(&rig.store, &name), Err(AttachError::NotAttached { .. })));
}

#[test]
fn of_many_at_once_one_attaches() {
    let rig = Rig::new();
    let name = rig.image("web");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| attach::attach(&rig.store, &name, &options())))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    assert!(
        results
            .iter()
            .all(|r| matches!(r, Ok(_) | Err(AttachError::AlreadyAttached { .. }))),
        "{results:?}"
    );
    attach::detach(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn a_mounted_or_claimed_device_is_in_use_and_stays() {
    let rig = Rig::new();
    let (name, device) = rig.formatted("web");
    attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
    let error = attach::detach(&rig.store, &name).unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains(text(&rig.mnt())), "{error}");
    let user = File::create(rig.mnt().join("open")).unwrap();
    let error = attach::umount(&rig.store, &name).unwrap_err();
    assert!(error.is_in_use(), "{error}");
    assert_eq!(rig.state(&name), Some(Condition::Attached));
    drop(user);
    mounts::unmount(&rig.mnt(), MINUTE).unwrap();
    let claim = {
        use std::os::unix::fs::OpenOptionsExt;
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device).unwrap()
    };
    assert!(attach::detach(&rig.store, &name).unwrap_err().is_in_use());
    drop(claim);
    rig.await_unclaimed(&device);
    attach::detach(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn what_somebody_mounted_over_an_image_is_not_unmounted_in_its_place() {
    let rig = Rig::new();
    let (name, _) = rig.formatted("web");
    attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
    run("mount", &["-t", "tmpfs", "none", text(&rig.mnt())]);
    let theirs = rig.mnt().join("theirs");
    File::create(&theirs).unwrap();
    for is_dead in [false, true] {
        if is_dead {
            rig.kill_server(&name);
            assert_eq!(attach::sweep(&rig.store, None).unwrap(), []);
        }
        let error = attach::umount(&rig.store, &name).unwrap_err();
        assert!(error.is_in_use() && error.to_string().contains("mounted over"), "{error}");
        assert!(theirs.exists(), "{is_dead}");
    }
    mounts::unmount(&rig.mnt(), Duration::from_secs(60)).unwrap();
    attach::umount(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn fstrim_gives_the_head_s_space_back() {
    let rig = Rig::new();
    let (name, _) = rig.formatted("web");
    attach::mount(&rig.store, &name, &rig.mnt(), &options()).unwrap();
    let used = || fs::metadata(rig.store.head_path(&name)).unwrap().blocks() * 512;
    run("fstrim", &[text(&rig.mnt())]);
    let before = used();
    write_synced(&rig.mnt().join("big"), &vec![0x5a; 64 << 20]);
    let full = used();
    assert!(full >= before + (60 << 20), "{before} {full}");
    fs::remove_file(rig.mnt().join("big")).unwrap();
    run("sync", &["-f", text(&rig.mnt())]);
    run("fstrim", &[text(&rig.mnt())]);
    run("sync", &["-f", text(&rig.mnt())]);
    let after = used();
    assert!(after < before + (8 << 20), "{before} {full} {after}");
    attach::umount(&rig.store, &name).unwrap();
}

#[test]
fn a_server_that_cannot_start_leaves_nothing_and_says_why() {
    let rig = Rig::new();
    let (name, _) = rig.formatted("web");
    attach::detach(&rig.store, &name).unwrap();
    let head = rig.store.head_path(&name);
    let bytes = fs::read(&head).unwrap();
    fs::write(&head, b"nonsense").unwrap();
    match attach::attach(&rig.store, &name, &options()) {
        Err(AttachError::Step {
            step: Step::StartServer { .. },
            cause,
            left,
            ..
        }) => {
            assert!(cause.to_string().contains("head.delta") && left.is_empty(), "{cause} {left:?}");
        }
        other => panic!("{other:?}"),
    }
    rig.assert_clean(&name);
    fs::write(&head, bytes).unwrap();
    let missing = AttachOptions {
        program: Some(Program::at("/nonexistent/blockbtd")),
        ..options()
    };
    assert!(attach::attach(&rig.store, &name, &missing).is_err());
    let dies = AttachOptions {
        program: Some(Program::at("/bin/false")),
        ..options()
    };
    assert!(attach::attach(&rig.store, &name, &dies).is_err());
    rig.assert_clean(&name);
    rig.attach(&name);
}

#[test]
fn a_mount_that_fails_is_undone_down_to_the_server() {
    let rig = Rig::new();
    let name = rig.image("blank");
    match attach::mount(&rig.store, &name, &rig.mnt(), &options()) {
        Err(AttachError::Step {
            step: Step::Mount { .. },
            left,
            ..
        }) => assert!(left.is_empty()),
        other => panic!("{other:?}"),
    }
    rig.assert_clean(&name);
}

#[test]
fn a_temporary_device_is_swept_when_its_maker_is_gone() {
    let rig = Rig::new();
    let (name, made) = rig.temporary("web");
    assert!(attach::sweep(&rig.store, None).unwrap().is_empty(), "its maker lives");
    assert_eq!(rig.state(&name), Some(Condition::Attached));
    drop(made);
    assert_eq!(rig.state(&name), Some(Condition::Leftover));
    assert_eq!(attach::sweep(&rig.store, None).unwrap(), [ImageId::of(&name)]);
    rig.assert_clean(&name);
}

/// Resize works on a copy of the head: what somebody else mounted there would be lost with it.
#[test]
fn a_temporary_device_is_nobody_elses_while_its_maker_lives() {
    let rig = Rig::new();
    let (name, made) = rig.temporary("web");
    let dir = tempfile::tempdir().unwrap();
    for refused in [
        attach::mount(&rig.store, &name, dir.path(), &options()).map(drop),
        attach::attach(&rig.store, &name, &options()).map(drop),
        attach::detach(&rig.store, &name).map(drop),
        attach::umount(&rig.store, &name).map(drop),
    ] {
        assert!(matches!(refused, Err(AttachError::Owned { .. })), "{refused:?}");
    }
    assert_eq!(rig.state(&name), Some(Condition::Attached));
    made.detach(&rig.store, &name).unwrap();
    rig.assert_clean(&name);
}

#[test]
fn what_is_left_of_another_boot_is_cleaned_and_believed_by_nobody() {
    let rig = Rig::new();
    let (name, _) = rig.formatted("web");
    let place = rig.place(&name);
    let state = fs::read_to_string(place.join("state.json")).unwrap();
    attach::detach(&rig.store, &name).unwrap();
    // As if /run had outlived the reboot, and the store had been another one's then.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let old = state
        .replace(boot.trim(), "00000000-0000-0000-0000-000000000000")
        .replace(text(rig.store.root()), "/");
    fs::create_dir_all(place.join("fuse")).unwrap();
    fs::write(place.join("state.json"), old).unwrap();
    assert!(attach::states(&rig.store).unwrap().is_empty());
    assert_eq!(attach::sweep(&rig.store, None).unwrap(), [ImageId::of(&name)]);
    rig.assert_clean(&name);
    rig.attach(&name);
}
