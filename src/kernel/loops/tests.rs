use super::*;
use std::os::unix::fs::FileExt;

const PATIENCE: Duration = Duration::from_secs(60);

/// Frees its device even when the test fails.
struct Made(u32, String);
impl Drop for Made {
    fn drop(&mut self) {
        let _ = detach_dead(self.0, &self.1, PATIENCE);
    }
}

fn made(file: &Path, name: &str, read_only: bool) -> (LoopDevice, Made) {
    let device = attach(&Attach {
        file,
        name,
        read_only,
        direct_io: true,
    })
    .expect("a loop device can be made");
    let guard = Made(device.number, name.into());
    (device, guard)
}

fn disk(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("disk");
    fs::write(&path, vec![7; 1 << 20]).expect("a file can be written");
    path
}

#[test]
fn a_device_has_512_byte_sectors_its_name_and_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let (device, _guard) = made(&disk(&dir), "blockbt-test-0123", false);
    let queue = |name: &str| {
        fs::read_to_string(format!("{SYS_BLOCK}/loop{}/queue/{name}", device.number))
            .unwrap()
            .trim()
            .to_string()
    };
    assert_eq!(queue("logical_block_size"), "512");
    assert_eq!(device.name.as_deref(), Some("blockbt-test-0123"));
    assert_eq!(sys::block::size(&File::open(device.path()).unwrap()).unwrap(), Bytes(1 << 20));
    assert!(list().unwrap().contains(&device));
}

#[test]
fn a_name_of_63_bytes_fits_and_one_of_64_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(&dir);
    let long = format!("blockbt-test-{}", "x".repeat(51));
    assert!(
        attach(&Attach {
            file: &file,
            name: &long,
            read_only: false,
            direct_io: false
        })
        .is_err()
    );
    let (device, _guard) = made(&file, &long[..63], false);
    assert_eq!(device.name.as_deref(), Some(&long[..63]));
}

#[test]
fn a_read_only_device_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (device, _guard) = made(&disk(&dir), "blockbt-test-ro", true);
    assert!(device.read_only);
    let wrote = OpenOptions::new().read(true).write(true).open(device.path()).and_then(|d| {
        d.write_all_at(&[1; 512], 0)?;
        d.sync_all()
    });
    assert!(wrote.is_err());
    assert_eq!(fs::read(dir.path().join("disk")).unwrap()[0], 7);
}

#[test]
fn a_claimed_device_is_busy_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (device, _guard) = made(&disk(&dir), "blockbt-test-busy", false);
    let claim = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device.path())
        .unwrap();
    assert!(detach(device.number, "blockbt-test-busy", PATIENCE).unwrap_err().is_busy());
    let is_claimed = |name| is_claimed(device.number, name);
    assert!(is_claimed("blockbt-test-busy") && !is_claimed("another-name"));
    drop(claim);
    let start = std::time::Instant::now();
    // What other tests of this process start has our descriptors for a moment.
    while is_claimed("blockbt-test-busy") && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    detach(device.number, "another-name", PATIENCE).unwrap();
    assert_eq!(inspect(device.number).unwrap(), device);
    detach(device.number, "blockbt-test-busy", PATIENCE).unwrap();
    assert_ne!(inspect(device.number).ok().and_then(|d| d.name), device.name);
    detach(device.number, "blockbt-test-busy", PATIENCE).unwrap();
}

#[test]
fn many_at_once_get_a_device_each() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(&dir);
    let all: Vec<(LoopDevice, Made)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|i| {
                scope.spawn({
                    let file = &file;
                    move || made(file, &format!("blockbt-test-many-{i}"), true)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut numbers: Vec<u32> = all.iter().map(|(d, _)| d.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 12);
    for (i, (device, _)) in all.iter().enumerate() {
        assert_eq!(device.name, Some(format!("blockbt-test-many-{i}")));
    }
}
