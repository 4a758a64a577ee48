//! Tensors in safetensors files: round trips, files that are none, and writes that fail.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{bytes, expect, join_all, row, tensor, values};
use syncbn_core::generator::Generator;
use syncbn_core::{Code, DType, MemoryFormat};
use syncbn_runtime::Tensor;
use syncbn_runtime::checkpoint::{Snapshot, load};

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("syncbn-checkpoint-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn save(path: &Path, tensors: &[(String, Tensor)]) {
    Snapshot::new(tensors, None).unwrap().write(path).unwrap();
}

fn one(value: f32) -> Vec<(String, Tensor)> {
    vec![("weight".into(), row(&[value; 3]))]
}

#[test]
fn every_type_and_shape_comes_back_bit_for_bit() {
    let numbers: Vec<f64> = Generator::new(1).randn_f64(24).iter().map(|x| 1000.0 * x).collect();
    let shapes: [&[usize]; 4] = [&[24], &[2, 3, 4], &[24, 1, 1], &[1, 2, 3, 4]];
    let mut tensors = Vec::new();
    for (dtype, shape) in DType::ALL.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))) {
        let made = tensor(&numbers, shape, dtype, MemoryFormat::Contiguous);
        tensors.push((format!("{dtype} {shape:?}"), made));
    }
    tensors.push(("empty".into(), tensor(&[], &[0, 3], DType::F32, MemoryFormat::Contiguous)));
    tensors.push(("scalar".into(), tensor(&[-7.0], &[], DType::I64, MemoryFormat::Contiguous)));
    tensors.push(("special".into(), row(&[f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 2.0])));
    let (folder, metadata) = (Folder::new(), HashMap::from([("format".to_string(), "pt".to_string())]));
    Snapshot::new(&tensors, Some(metadata.clone())).unwrap().write(&folder.file("model.safetensors")).unwrap();
    assert_eq!(folder.names(), ["model.safetensors"], "a temporary file stayed");
    let (loaded, found) = load(&folder.file("model.safetensors")).unwrap();
    assert_eq!((loaded.len(), found), (tensors.len(), metadata));
    for (name, expected) in &tensors {
        let (_, got) = loaded.iter().find(|(other, _)| other == name).unwrap();
        assert_eq!((got.dtype(), got.shape()), (expected.dtype(), expected.shape()), "{name}");
        assert_eq!(bytes(got), bytes(expected), "{name}");
    }
}

#[test]
fn files_hold_row_major_order_whatever_the_format() {
    let (folder, numbers) = (Folder::new(), (0..30).map(f64::from).collect::<Vec<_>>());
    let last = tensor(&numbers, &[1, 5, 2, 3], DType::F32, MemoryFormat::ChannelsLast);
    save(&folder.file("x"), &[("x".into(), last)]);
    let (loaded, _) = load(&folder.file("x")).unwrap();
    assert_eq!(values(&loaded[0].1), numbers);
    assert_eq!(loaded[0].1.format(), MemoryFormat::Contiguous);
}

#[test]
fn a_snapshot_is_what_was_there_when_it_was_taken() {
    let (folder, tensors) = (Folder::new(), one(1.0));
    let snapshot = Snapshot::new(&tensors, None).unwrap();
    tensors[0].1.copy_from(&row(&[2.0; 3])).unwrap();
    snapshot.write(&folder.file("x")).unwrap();
    assert_eq!(values(&load(&folder.file("x")).unwrap().0[0].1), [1.0; 3]);
}

#[test]
fn a_name_twice_or_reserved_is_an_error() {
    for name in ["weight", "__metadata__"] {
        let tensors = [("weight".to_string(), row(&[1.0])), (name.to_string(), row(&[2.0]))];
        let error = expect(Snapshot::new(&tensors, None), Code::Argument);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn what_is_no_safetensors_file_is_a_file_error_that_names_it() {
    let folder = Folder::new();
    save(&folder.file("whole"), &one(1.0));
    let whole = fs::read(folder.file("whole")).unwrap();
    let mut huge_header = whole.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut wrong_header = whole.clone();
    wrong_header[9] = b'!';
    let longer = [&whole[..], b"x"].concat();
    let contents: [&[u8]; 8] =
        [b"", b"garbage", &[0xff; 64], &whole[..whole.len() - 1], &whole[..20], &huge_header, &wrong_header, &longer];
    for (index, content) in contents.into_iter().enumerate() {
        let path = folder.file(&format!("broken-{index}"));
        fs::write(&path, content).unwrap();
        let error = expect(load(&path), Code::File);
        assert!(error.message().contains(&format!("broken-{index}")), "{error}");
    }
    let error = expect(load(&folder.file("absent")), Code::File);
    assert!(error.message().contains("cannot read"), "{error}");
    expect(load(&folder.0), Code::File);
}

#[test]
fn a_type_we_do_not_have_is_a_dtype_error_that_names_the_tensor() {
    let folder = Folder::new();
    let header = br#"{"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}      "#;
    let content = [&(header.len() as u64).to_le_bytes()[..], header, &[0, 1]].concat();
    fs::write(folder.file("bool"), content).unwrap();
    let error = expect(load(&folder.file("bool")), Code::DType);
    assert!(error.message().contains("mask"), "{error}");
}

#[test]
fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
    let folder = Folder::new();
    save(&folder.file("model"), &one(1.0));
    // A file where a folder is needed, a folder where the file goes, and no folder at all.
    let snapshot = Snapshot::new(&one(2.0), None).unwrap();
    fs::create_dir(folder.file("taken")).unwrap();
    fs::write(folder.file("taken").join("inside"), "kept").unwrap();
    for path in [folder.file("model").join("below"), folder.file("taken"), folder.file("none").join("model")] {
        let error = expect(snapshot.write(&path), Code::File);
        assert!(error.message().contains("cannot write"), "{error}");
    }
    let mut names = folder.names();
    names.sort();
    assert_eq!(names, ["model", "taken"]);
    assert_eq!(fs::read(folder.file("taken").join("inside")).unwrap(), b"kept");
    assert_eq!(values(&load(&folder.file("model")).unwrap().0[0].1), [1.0; 3]);
}

#[test]
fn threads_that_write_one_file_leave_one_of_their_files_whole() {
    let folder = Folder::new();
    let path = folder.file("model");
    join_all(4, |rank| {
        for _ in 0..5 {
            Snapshot::new(&one(rank as f32), None).unwrap().write(&path).unwrap();
        }
    });
    let got = values(&load(&path).unwrap().0[0].1);
    assert!(got.iter().all(|value| *value == got[0]) && got.len() == 3, "{got:?}");
    assert_eq!(folder.names(), ["model"]);
}
