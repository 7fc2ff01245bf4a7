//! Device-mapper and loop devices on a kernel that has them. `vm-tests/run kernel-dm` runs this inside user-mode Linux.

use blockbt::kernel::dm::{DevNo, Dm, Line, New, Persistence, SnapshotStatus, Support, Suspend, Table, Target};
use blockbt::kernel::{loops, mounts};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Long: a guest shares its CPU with whatever else the host does.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const MIB_SECTORS: u64 = MIB / 512;

/// Names that one test has, and the devices it made; all are removed even when it fails, the last one first.
struct Bench {
    dm: Dm,
    dir: tempfile::TempDir,
    test: &'static str,
    loops: Vec<(u32, String)>,
    devices: Vec<String>,
}

impl Bench {
    fn new(test: &'static str) -> Bench {
        Bench {
            dm: Dm::open().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            test,
            loops: vec![],
            devices: vec![],
        }
    }

    fn name(&self, device: &str) -> String {
        format!("blockbt-test-{}-{device}", self.test)
    }

    fn uuid(&self, device: &str) -> String {
        format!("BLOCKBT-TEST-{}-{device}", self.test)
    }

    fn file(&self, name: &str, byte: u8, len: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, vec![byte; len as usize]).unwrap();
        path
    }

    /// A file full of `byte` and a loop over it.
    fn disk(&mut self, name: &str, byte: u8, read_only: bool) -> (PathBuf, DevNo) {
        let file = self.file(name, byte, MIB);
        let device = self.attach(&file, name, read_only);
        (file, loops::dev_no(device.number).unwrap())
    }

    fn attach(&mut self, file: &Path, name: &str, read_only: bool) -> loops::LoopDevice {
        let name = self.name(name);
        let wanted = loops::Attach {
            file,
            name: &name,
            read_only,
            direct_io: !read_only,
        };
        let device = loops::attach(&wanted).unwrap();
        self.loops.push((device.number, name));
        device
    }

    fn create(&mut self, device: &str, table: &Table, read_only: bool) -> (PathBuf, DevNo) {
        let (name, uuid) = (self.name(device), self.uuid(device));
        let new = New {
            name: &name,
            uuid: &uuid,
            read_only,
            internal: true,
        };
        let number = self.dm.create(&new, table).unwrap();
        self.devices.push(uuid);
        (self.dm.make_node(&name, number).unwrap(), number)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for uuid in self.devices.drain(..).rev() {
            let name = self.dm.info(&uuid).ok().flatten().map(|info| info.name);
            let _ = self.dm.remove(&uuid, PATIENCE);
            let _ = name.map(|name| self.dm.remove_node(&name));
        }
        for (number, name) in self.loops.drain(..) {
            let _ = loops::detach(number, &name, PATIENCE);
        }
    }
}

fn linear(device: DevNo) -> Table {
    Table::single(MIB_SECTORS, Target::Linear { device, offset: 0 }).unwrap()
}

fn zero(sectors: u64) -> Table {
    Table::single(sectors, Target::Zero).unwrap()
}

fn snapshot(origin: DevNo, cow: DevNo, discard_zeroes_cow: bool) -> Table {
    let target = Target::Snapshot {
        origin,
        cow,
        persistence: Persistence::PO,
        chunk_sectors: 8,
        discard_zeroes_cow,
    };
    Table::single(MIB_SECTORS, target).unwrap()
}

/// The first 4 KiB, past any cache: it ends with the last one who has the device open.
fn first_byte(node: &Path) -> u8 {
    let mut block = [0; 4096];
    File::open(node).unwrap().read_exact(&mut block).unwrap();
    assert!(block.iter().all(|b| *b == block[0]));
    block[0]
}

fn write_block(node: &Path, byte: u8, offset: u64) -> std::io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(node)?;
    device.write_all_at(&[byte; 4096], offset)?;
    device.sync_all()
}

#[test]
fn this_kernel_has_what_our_tables_need() {
    assert_eq!(Dm::probe(), Support::Yes);
}

#[test]
fn a_device_is_what_its_table_says_until_it_is_removed() {
    let mut bench = Bench::new("made");
    let (_, below) = bench.disk("disk", 7, false);
    let lines = vec![
        Line {
            start: 0,
            len: 1024,
            target: Target::Linear { device: below, offset: 8 },
        },
        Line {
            start: 1024,
            len: 512,
            target: Target::Zero,
        },
        Line {
            start: 1536,
            len: 8,
            target: Target::Error,
        },
    ];
    let table = Table::new(lines).unwrap();
    let (node, number) = bench.create("top", &table, false);
    let (name, uuid) = (bench.name("top"), bench.uuid("top"));
    assert_eq!(bench.dm.table(&uuid).unwrap(), table);
    let info = bench.dm.info(&uuid).unwrap().expect("it is there");
    assert_eq!((info.name.as_str(), info.device, info.open_count), (name.as_str(), number, 0));
    assert!(!info.read_only && !info.suspended && info.has_table);
    let listed = bench.dm.list().unwrap();
    let found = listed.iter().find(|device| device.name == name).expect("it is listed");
    assert_eq!((found.uuid.as_deref(), found.device), (Some(uuid.as_str()), number));
    assert_eq!(first_byte(&node), 7);
    // What dmsetup prints is our text, and what we print loads.
    let printed = Command::new("dmsetup").args(["table", &name]).output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap().parse::<Table>().unwrap(), table);
    bench.dm.remove(&uuid, PATIENCE).unwrap();
    assert_eq!(bench.dm.info(&uuid).unwrap(), None);
    bench.dm.remove_node(&name).unwrap();
    assert!(!node.exists());
    bench.dm.remove(&uuid, PATIENCE).unwrap();
    bench.dm.remove_node(&name).unwrap();
}

#[test]
fn many_targets_go_there_and_back() {
    let mut bench = Bench::new("many");
    let (_, below) = bench.disk("disk", 7, false);
    let line = |n: u64| Line {
        start: n,
        len: 1,
        target: Target::Linear {
            device: below,
            offset: n * 37 % MIB_SECTORS,
        },
    };
    let table = Table::new((0..30_000).map(line).collect()).unwrap();
    bench.create("top", &table, true);
    assert_eq!(bench.dm.table(&bench.uuid("top")).unwrap(), table);
}

#[test]
fn a_read_only_snapshot_refuses_writes_and_stays_valid() {
    let mut bench = Bench::new("ro");
    let (_, origin) = bench.create("zero", &zero(MIB_SECTORS), true);
    let (file, cow) = bench.disk("cow", 0, false);
    let (node, _) = bench.create("top", &snapshot(origin, cow, false), false);
    write_block(&node, 9, 0).unwrap();
    let uuid = bench.uuid("top");
    bench.dm.remove(&uuid, PATIENCE).unwrap();
    let before = fs::read(&file).unwrap();
    let sealed = bench.attach(&file, "sealed", true);
    let cow = loops::dev_no(sealed.number).unwrap();
    let (node, _) = bench.create("top", &snapshot(origin, cow, false), true);
    assert!(bench.dm.info(&uuid).unwrap().unwrap().read_only);
    assert!(write_block(&node, 1, 0).is_err());
    assert_eq!(first_byte(&node), 9);
    assert!(matches!(bench.dm.snapshot_status(&uuid).unwrap(), SnapshotStatus::Used { .. }));
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_full_snapshot_says_so_and_reads_on() {
    let mut bench = Bench::new("full");
    let (_, origin) = bench.create("zero", &zero(MIB_SECTORS), true);
    let file = bench.file("cow", 0, 64 << 10);
    let device = bench.attach(&file, "cow", false);
    let cow = loops::dev_no(device.number).unwrap();
    let (node, _) = bench.create("top", &snapshot(origin, cow, true), false);
    let uuid = bench.uuid("top");
    write_block(&node, 9, 0).unwrap();
    let want = SnapshotStatus::Used {
        used: 24,
        total: 128,
        metadata: 16,
    };
    assert_eq!(bench.dm.snapshot_status(&uuid).unwrap(), want);
    assert!((1..32).any(|block| write_block(&node, 9, block * 4096).is_err()));
    assert_eq!(bench.dm.snapshot_status(&uuid).unwrap(), SnapshotStatus::Overflow);
    assert_eq!(first_byte(&node), 9);
    assert_eq!(bench.dm.table(&uuid).unwrap(), snapshot(origin, cow, true));
    assert!(
        bench.dm.snapshot_status(&bench.uuid("zero")).is_err(),
        "a zero device has no such status"
    );
}

#[test]
fn a_busy_device_is_waited_for_and_no_longer() {
    let mut bench = Bench::new("busy");
    let (node, _) = bench.create("top", &zero(MIB_SECTORS), false);
    let uuid = bench.uuid("top");
    let user = File::open(&node).unwrap();
    // It returns while there is a user.
    let error = bench.dm.remove(&uuid, Duration::from_millis(50)).unwrap_err();
    assert!(error.is_busy(), "{error:?}");
    assert_eq!(bench.dm.info(&uuid).unwrap().unwrap().open_count, 1);
    let closes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(user);
    });
    bench.dm.remove(&uuid, PATIENCE).unwrap();
    closes.join().unwrap();
}

#[test]
fn a_foreign_device_with_our_name_is_told_of_and_stays() {
    let mut bench = Bench::new("foreign");
    bench.create("top", &zero(8), false);
    let (name, theirs) = (bench.name("top"), bench.uuid("top"));
    for (name, ours) in [
        (name.as_str(), "BLOCKBT-TEST-ours"),
        ("blockbt-test-other-name", theirs.as_str()),
        (name.as_str(), theirs.as_str()),
    ] {
        let new = New {
            name,
            uuid: ours,
            read_only: false,
            internal: true,
        };
        let error = bench.dm.create(&new, &zero(8)).unwrap_err();
        assert_eq!(error.cause.kind(), std::io::ErrorKind::AlreadyExists, "{error:?}");
        let said = format!("{error}: {}", error.cause);
        assert!(said.contains(&bench.name("top")) && said.contains(&theirs), "{said}");
    }
    bench.dm.remove("BLOCKBT-TEST-ours", PATIENCE).unwrap();
    bench.dm.remove_node(&name).unwrap();
    assert!(bench.dm.info(&theirs).unwrap().is_some());
    assert!(
        Path::new("/dev/mapper").join(&name).exists(),
        "the node of a device that is there stays"
    );
}

#[test]
fn a_device_whose_table_does_not_load_is_not_left_behind() {
    let bench = Bench::new("undone");
    // Of a kind that is for local use only; a loop's number would make the driver add that loop.
    let nowhere = DevNo { major: 240, minor: 0 };
    let (name, uuid) = (bench.name("top"), bench.uuid("top"));
    let new = New {
        name: &name,
        uuid: &uuid,
        read_only: false,
        internal: true,
    };
    assert!(bench.dm.create(&new, &linear(nowhere)).is_err());
    assert_eq!(bench.dm.info(&uuid).unwrap(), None);
    for long in ["x".repeat(200), String::new()] {
        assert!(bench.dm.create(&New { name: &long, ..new }, &zero(8)).is_err());
        assert!(bench.dm.create(&New { uuid: &long, ..new }, &zero(8)).is_err());
    }
}

#[test]
fn what_a_dead_maker_left_half_made_is_seen_and_removed() {
    let bench = Bench::new("half");
    let (name, uuid) = (bench.name("top"), bench.uuid("top"));
    let words = ["create", &name, "--uuid", &uuid, "--notable", "--noudevrules", "--noudevsync"];
    assert!(Command::new("dmsetup").args(words).status().unwrap().success());
    assert!(!bench.dm.info(&uuid).unwrap().unwrap().has_table);
    bench.dm.remove(&uuid, PATIENCE).unwrap();
    assert_eq!(bench.dm.info(&uuid).unwrap(), None);
}

#[test]
fn a_table_is_swapped_under_a_user() {
    let mut bench = Bench::new("swap");
    let (_, one) = bench.disk("one", 1, false);
    let (_, two) = bench.disk("two", 2, false);
    let (node, number) = bench.create("top", &linear(one), false);
    let uuid = bench.uuid("top");
    assert_eq!(first_byte(&node), 1);
    bench.dm.load(&uuid, &linear(two), false).unwrap();
    assert_eq!(bench.dm.table(&uuid).unwrap(), linear(one), "the new one waits");
    bench
        .dm
        .suspend(
            &uuid,
            Suspend {
                flush: true,
                freeze: false,
            },
        )
        .unwrap();
    assert!(bench.dm.info(&uuid).unwrap().unwrap().suspended);
    let reader = std::thread::spawn(move || first_byte(&node));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!reader.is_finished(), "what is suspended answers nobody");
    bench.dm.resume(&uuid, true).unwrap();
    assert_eq!(reader.join().unwrap(), 2);
    let info = bench.dm.info(&uuid).unwrap().unwrap();
    assert!(!info.suspended && info.device == number);
    assert_eq!(bench.dm.table(&uuid).unwrap(), linear(two));
}

#[test]
fn a_hundred_devices_and_loops_are_made_at_once() {
    let bench = Bench::new("crowd");
    let before = (bench.dm.list().unwrap().len(), loops::list().unwrap().len());
    let file = bench.file("disk", 3, MIB);
    std::thread::scope(|scope| {
        for n in 0..100 {
            let (bench, file) = (&bench, &file);
            scope.spawn(move || {
                let (name, uuid) = (bench.name(&n.to_string()), bench.uuid(&n.to_string()));
                let wanted = loops::Attach {
                    file,
                    name: &name,
                    read_only: true,
                    direct_io: false,
                };
                let device = loops::attach(&wanted).unwrap();
                let new = New {
                    name: &name,
                    uuid: &uuid,
                    read_only: true,
                    internal: true,
                };
                let number = bench.dm.create(&new, &linear(loops::dev_no(device.number).unwrap())).unwrap();
                let node = bench.dm.make_node(&name, number).unwrap();
                assert_eq!(first_byte(&node), 3);
                assert_eq!(loops::find(|found| found == name).unwrap(), [loops::get(device.number).unwrap()]);
                bench.dm.remove(&uuid, PATIENCE).unwrap();
                bench.dm.remove_node(&name).unwrap();
                loops::detach(device.number, &name, PATIENCE).unwrap();
            });
        }
    });
    assert_eq!((bench.dm.list().unwrap().len(), loops::list().unwrap().len()), before);
}

#[test]
fn a_loop_is_found_by_number_name_and_file_and_grows_with_it() {
    let mut bench = Bench::new("loop");
    let (file, number) = bench.disk("disk", 7, false);
    let loop_number = loops::number_of(number).expect("it is a loop");
    let device = loops::get(loop_number).unwrap();
    let data = fs::metadata(&file).unwrap();
    assert_eq!(
        (device.file_device, device.file_inode),
        (Some(data.dev()), Some(data.ino())),
        "{device:?}"
    );
    assert_eq!(device.name, Some(bench.name("disk")));
    assert_eq!(loops::find(|name| name == bench.name("disk")).unwrap(), [device]);
    assert_eq!(loops::find(|name| name == bench.name("other")).unwrap(), []);
    assert_eq!(loops::number_of(DevNo { major: 8, minor: 0 }), None);
    assert_eq!(loops::get(1 << 19), None);
    let sectors = || fs::read_to_string(format!("/sys/block/loop{loop_number}/size")).unwrap();
    assert_eq!(sectors().trim(), "2048");
    OpenOptions::new().write(true).open(&file).unwrap().set_len(3 * MIB).unwrap();
    loops::set_capacity(loop_number).unwrap();
    assert_eq!(sectors().trim(), "6144");
}

#[test]
fn a_free_loop_that_a_table_claims_starves_nobody() {
    let mut bench = Bench::new("starved");
    let (_, last) = bench.disk("last", 1, false);
    // The first free number now; a table over a device without a size loads.
    let free = DevNo {
        major: 7,
        minor: last.minor + 1,
    };
    bench.create("claim", &linear(free), false);
    for n in 0..3 {
        let (_, device) = bench.disk(&format!("disk-{n}"), 2, false);
        assert_ne!(device, free);
    }
}

#[test]
fn a_loop_does_direct_io_where_the_host_can_and_says_which() {
    let mut bench = Bench::new("direct");
    let disk = bench.file("ext4", 0, 16 * MIB);
    let host = bench.attach(&disk, "host", false);
    assert!(Command::new("mkfs.ext4").arg("-q").arg(host.path()).status().unwrap().success());
    let dir = bench.dir.path().join("mounted");
    fs::create_dir(&dir).unwrap();
    mounts::mount_device(&host.path(), &dir, "ext4", None, false).unwrap();
    let file = dir.join("file");
    fs::write(&file, vec![5; MIB as usize]).unwrap();
    let name = bench.name("inner");
    for (direct_io, open) in [(true, true), (true, false), (false, true)] {
        let wanted = loops::Attach {
            file: &file,
            name: &name,
            read_only: false,
            direct_io,
        };
        let device = if open {
            loops::attach_open(&OpenOptions::new().read(true).write(true).open(&file).unwrap(), &wanted).unwrap()
        } else {
            loops::attach(&wanted).unwrap()
        };
        let said = fs::read_to_string(format!("/sys/block/loop{}/loop/dio", device.number)).unwrap();
        assert_eq!((device.direct_io, said.trim()), (direct_io, if direct_io { "1" } else { "0" }));
        assert_eq!(first_byte(&device.path()), 5);
        loops::detach(device.number, &name, PATIENCE).unwrap();
    }
    mounts::unmount(&dir, PATIENCE).unwrap();
    // A tmpfs of this kernel has no direct I/O: such a device is buffered, and says so.
    assert_eq!(
        fs::read_to_string(format!("/sys/block/loop{}/loop/dio", host.number))
            .unwrap()
            .trim(),
        "0"
    );
    assert!(!host.direct_io);
}

#[test]
fn a_mapped_device_is_mounted_by_its_node_and_busy_meanwhile() {
    let mut bench = Bench::new("mount");
    let disk = bench.file("disk", 0, 16 * MIB);
    let below = bench.attach(&disk, "disk", false);
    let target = Target::Linear {
        device: loops::dev_no(below.number).unwrap(),
        offset: 0,
    };
    let (node, number) = bench.create("top", &Table::single(16 * MIB_SECTORS, target).unwrap(), false);
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&node).status().unwrap().success());
    let dir = bench.dir.path().join("mounted");
    fs::create_dir(&dir).unwrap();
    mounts::mount_device(&node, &dir, "ext4", None, false).unwrap();
    let mounted = mounts::list().unwrap().into_iter().find(|mount| mount.dir == dir).unwrap();
    assert_eq!(mounted.device(), number);
    let busy = bench.dm.remove(&bench.uuid("top"), Duration::ZERO).unwrap_err();
    assert!(busy.is_busy());
    mounts::unmount(&dir, PATIENCE).unwrap();
    bench.dm.remove(&bench.uuid("top"), PATIENCE).unwrap();
}

#[test]
fn a_stale_node_is_replaced() {
    let mut bench = Bench::new("stale");
    let (node, number) = bench.create("top", &zero(8), false);
    let elsewhere = DevNo { major: 7, minor: 0 };
    bench.dm.make_node(&bench.name("top"), elsewhere).unwrap();
    assert_eq!(bench.dm.make_node(&bench.name("top"), number).unwrap(), node);
    assert_eq!(first_byte(&node), 0);
}
