use block::MemStorage;

use super::*;
use crate::luks::SLOTS;

fn once() -> LuksOptions {
    LuksOptions {
        iterations: Iterations::Exactly(10),
        ..LuksOptions::default()
    }
}

fn keys() -> Keys {
    Keys::Passphrases(vec![Passphrase::new("wrong"), Passphrase::new("right")])
}

fn disk(size: u64, preallocation: Preallocation) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new());
    create(&*storage, size, &once(), &Passphrase::new("right"), preallocation).unwrap();
    storage
}

fn open(storage: &Arc<MemStorage>) -> Image {
    Image::open(storage.clone(), Access::WRITE, &keys()).unwrap()
}

#[test]
fn a_new_disk_is_noise_unless_zeros_are_written_to_all_of_it() {
    let mut bytes = vec![0; 4096];
    open(&disk(1 << 20, Preallocation::Off))
        .read_at(&mut bytes, 77)
        .unwrap();
    assert!(!block::is_zero(&bytes));
    let image = open(&disk((1 << 20) - 3, Preallocation::Full));
    assert_eq!(image.size(), 1 << 20);
    let mut bytes = vec![7; 1 << 20];
    image.read_at(&mut bytes, 0).unwrap();
    assert!(block::is_zero(&bytes));
    let error = create(
        &MemStorage::new(),
        1,
        &once(),
        &Passphrase::new("x"),
        Preallocation::Metadata,
    );
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_is_written_anywhere_reads_back_and_is_not_in_the_file() {
    let storage = disk(1 << 20, Preallocation::Full);
    let image = open(&storage);
    let mut model = vec![0; 1 << 20];
    for (offset, len) in [
        (0, 512),
        (513, 1),
        (1000, 70_000),
        (65_536, 300_000),
        ((1 << 20) - 5, 5),
    ] {
        let text: Vec<u8> = b"secret".iter().copied().cycle().take(len).collect();
        model[offset..offset + len].copy_from_slice(&text);
        let (start, end) = text.split_at(len / 3);
        image
            .write_vectored_at(&[IoSlice::new(start), IoSlice::new(end)], offset as u64)
            .unwrap();
    }
    model[2000..150_000].fill(0);
    image.zero_at(2000, 148_000, ZeroMode::Unmap).unwrap();
    image.discard_at(300_000, 5000).unwrap();
    let mut bytes = vec![1; 1 << 20];
    open(&storage).read_at(&mut bytes, 0).unwrap();
    assert!(bytes == model);
    let (mut start, mut end) = (vec![0; 999], vec![0; 70_001]);
    let mut bufs = [IoSliceMut::new(&mut start), IoSliceMut::new(&mut end)];
    image.read_vectored_at(&mut bufs, 150_001).unwrap();
    assert!(start == model[150_001..151_000] && end == model[151_000..221_001]);
    assert!(!storage.to_vec().windows(12).any(|text| text == b"secretsecret"));
}

#[test]
fn who_has_no_key_sees_the_header_and_nothing_else() {
    let storage = disk(1 << 20, Preallocation::Off);
    let shared: Arc<dyn Storage> = storage.clone();
    let open = |keys| LuksFormat.open(shared.clone(), None, Access::READ, Backing::None, keys);
    let wrong = Keys::Passphrases(vec![Passphrase::new("wrong")]);
    for keys in [Keys::None, Keys::Passphrases(Vec::new()), wrong] {
        assert_eq!(open(keys).unwrap_err().kind(), ErrorKind::Key);
    }
    let image = open(Keys::Locked).unwrap();
    assert_eq!(image.size(), 1 << 20);
    assert_eq!(image.read_at(&mut [0], 0).unwrap_err().kind(), ErrorKind::Key);
    let extent = image.extent_at(5, u64::MAX).unwrap();
    assert_eq!((extent.len, extent.host), ((1 << 20) - 5, None));
    let info = open(keys()).unwrap().info();
    assert!(info.encrypted && info.read_only && !info.zero_init);
    assert_eq!(
        open(keys()).unwrap().write_at(&[0], 0).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
}

#[test]
fn a_disk_grows_with_zeros_or_unwritten_and_shrinks_when_it_may() {
    let storage = disk(4096, Preallocation::Full);
    let image = open(&storage);
    let all = |image: &Image| {
        let mut bytes = vec![1; image.size() as usize];
        image.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    image.resize(8192, Resize::default()).unwrap();
    assert!(block::is_zero(&all(&image)));
    image.resize_unwritten(12_000, Resize::default()).unwrap();
    assert_eq!(image.size(), 12_288);
    assert!(!block::is_zero(&all(&image)[8192..]));
    for wrong in [4096, u64::MAX, i64::MAX as u64 - 4096] {
        assert!(image.resize(wrong, Resize::default()).is_err());
    }
    let shrink = Resize {
        shrink: true,
        ..Resize::default()
    };
    image.resize(512, shrink).unwrap();
    assert_eq!((image.size(), open(&storage).size()), (512, 512));
}

#[test]
fn what_lies_over_each_other_or_nowhere_is_refused() {
    let storage = disk(4096, Preallocation::Off);
    let payload = read_luks(&*storage).unwrap().payload_offset();
    storage.set_len(payload).unwrap();
    assert_eq!(open(&storage).size(), 0);
    storage.set_len(payload - 1).unwrap();
    let error = read_luks(&*storage).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let image = open(&disk(4096, Preallocation::Off));
    for error in [
        image.read_at(&mut [0; 2], 4095),
        image.write_at(&[0; 2], 4095),
        image.zero_at(u64::MAX, 2, ZeroMode::Unmap),
        image.discard_at(4096, 1),
        image.extent_at(4096, 1).map(|_| ()),
    ] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::OutOfBounds);
    }
    let shared: Arc<dyn Storage> = disk(512, Preallocation::Off);
    let below = Backing::Device(Arc::new(image));
    assert!(
        LuksFormat
            .open(shared, None, Access::READ, below, keys())
            .is_err()
    );
}

#[test]
fn keys_come_and_go_in_an_open_disk() {
    let storage = disk(4096, Preallocation::Off);
    let image = open(&storage);
    let second = Passphrase::new("second");
    assert_eq!(
        image.add_key(&second, Some(6), Iterations::Exactly(5)).unwrap(),
        6
    );
    assert_eq!(image.slots_opened_by(&second).unwrap(), [6]);
    image.remove_key(0, false).unwrap();
    assert!(image.remove_key(6, false).is_err());
    let opens = |passphrase| {
        Image::open(
            storage.clone(),
            Access::READ,
            &Keys::Passphrases(vec![passphrase]),
        )
        .is_ok()
    };
    assert!(opens(second) && !opens(Passphrase::new("right")));
    let slots = image.luks().unwrap().unwrap().slots().map(|slot| slot.active);
    assert_eq!(slots, [false, false, false, false, false, false, true, false]);
    assert_eq!(slots.len(), SLOTS);
    let locked = Image::open(storage, Access::WRITE, &Keys::Locked).unwrap();
    let error = locked.add_key(&Passphrase::new("x"), None, Iterations::Exactly(1));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Key);
}

#[test]
fn version_1_is_recognised_and_nothing_else() {
    assert!(LuksFormat.probe(b"LUKS\xba\xbe\0\x01aes"));
    for other in [&b"LUKS\xba\xbe\0\x02"[..], b"LUKS\xba\xbe\0", b"LUKS", b""] {
        assert!(!LuksFormat.probe(other));
    }
}
