use super::*;
use crate::blockio::{MemoryIo, ReadAt, WriteAt};
use crate::kernel::{loops, mounts};
use crate::units::Bytes;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

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
                    let _ = loops::detach_dead(number, PATIENCE);
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
        name: "blockbt-test-fuse",
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
    loops::detach(device.number, PATIENCE).unwrap();
    mounts::unmount(&fuse_dir, PATIENCE).unwrap();
    thread.join().unwrap().unwrap();
    assert_eq!(disk.0.bytes()[1080..1082], [0x53, 0xef], "ext4's magic is on the disk");
}
