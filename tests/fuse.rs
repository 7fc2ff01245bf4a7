//! A disk of our own making behind FUSE and a loop device, with a real kernel.
#![cfg(feature = "root-tests")]

use blockbt::blockio::{BlockDevice, MemoryIo, ReadAt, WriteAt};
use blockbt::fuse::{FILE, Server, THREADS};
use blockbt::kernel::{loops, mounts};
use blockbt::units::Bytes;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "blockbt-test-fuse";
const PATIENCE: Duration = Duration::from_secs(60);

struct MemoryDisk(MemoryIo);

impl BlockDevice for MemoryDisk {
    fn size(&self) -> Bytes {
        self.0.size().expect("memory has a size")
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: Bytes, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(buf, at)
    }
    fn write(&self, at: Bytes, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, at)
    }
    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.0.punch(at, len)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Unmounts and detaches in its drop, newest first, whatever happened.
#[derive(Default)]
struct Rig {
    dirs: Vec<PathBuf>,
    device: Option<u32>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        while let Some(dir) = self.dirs.pop() {
            if self.dirs.is_empty() {
                if let Some(number) = self.device.take() {
                    let _ = loops::detach_dead(number, NAME, PATIENCE);
                }
            }
            if mounts::list().is_ok_and(|all| all.iter().any(|m| m.dir == dir)) {
                let _ = mounts::unmount(&dir, PATIENCE).or_else(|_| mounts::unmount_lazily(&dir));
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_file_system_lives_on_a_disk_shown_by_fuse() {
    let dir = tempfile::tempdir().unwrap();
    let (fuse_dir, mount_dir) = (dir.path().join("fuse"), dir.path().join("mnt"));
    std::fs::create_dir(&fuse_dir).unwrap();
    std::fs::create_dir(&mount_dir).unwrap();
    let disk = Arc::new(MemoryDisk(MemoryIo::new(vec![0; 64 << 20])));
    let mut rig = Rig::default();
    let server = Server::mount(disk.clone(), &fuse_dir, THREADS).unwrap();
    rig.dirs.push(fuse_dir.clone());
    let thread = std::thread::spawn(move || server.run());

    let device = loops::attach(&loops::Attach {
        file: &fuse_dir.join(FILE),
        name: NAME,
        read_only: false,
        direct_io: true,
    })
    .unwrap();
    rig.device = Some(device.number);
    assert!(device.direct_io);
    let node = device.path();
    let node = node.to_str().unwrap();
    run("mkfs.ext4", &["-q", node]);
    mounts::mount_device(&device.path(), &mount_dir, "ext4", None, false).unwrap();
    rig.dirs.push(mount_dir.clone());
    let content: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(mount_dir.join("file"), &content).unwrap();
    run("sync", &["-f", mount_dir.to_str().unwrap()]);
    run("fstrim", &[mount_dir.to_str().unwrap()]);
    mounts::unmount(&mount_dir, PATIENCE).unwrap();
    run("e2fsck", &["-fn", node]);

    mounts::mount_device(&device.path(), &mount_dir, "ext4", None, true).unwrap();
    assert_eq!(std::fs::read(mount_dir.join("file")).unwrap(), content);
    mounts::unmount(&mount_dir, PATIENCE).unwrap();
    loops::detach(device.number, NAME, PATIENCE).unwrap();
    mounts::unmount(&fuse_dir, PATIENCE).unwrap();
    thread.join().unwrap().unwrap();
    assert_eq!(disk.0.bytes()[1080..1082], [0x53, 0xef], "ext4's magic is on the disk");
}

/// Full for writes, rotten for reads, and its flush fails.
struct Broken;

impl BlockDevice for Broken {
    fn size(&self) -> Bytes {
        Bytes(1 << 20)
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, _: Bytes, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::InvalidData.into())
    }
    fn write(&self, _: Bytes, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
    fn zero(&self, _: Bytes, _: Bytes) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EDQUOT))
    }
}

#[test]
fn errors_keep_their_number_on_the_way_to_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::mount(Arc::new(Broken), dir.path(), 1).unwrap();
    let rig = Rig {
        dirs: vec![dir.path().into()],
        device: None,
    };
    let thread = std::thread::spawn(move || server.run());
    let file = std::fs::File::options().read(true).write(true).open(dir.path().join(FILE)).unwrap();
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(code(file.write_all_at(&[1; 4096], 0)), libc::ENOSPC);
    assert_eq!(code(file.read_exact_at(&mut [0; 4096], 0)), libc::EIO);
    assert_eq!(code(file.sync_all()), libc::EDQUOT);
    assert_eq!(code(file.write_all_at(&[1; 4096], 1 << 20)), libc::ENOSPC, "behind the end");
    assert_eq!(code(file.set_len(5)), libc::EPERM);
    assert_eq!(code(std::fs::File::create(dir.path().join("new")).map(drop)), libc::ENOSYS);
    drop(file);
    drop(rig);
    thread.join().unwrap().unwrap();
}
