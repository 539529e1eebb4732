"""Where data sets come from: plain values, one entry per set that doesn't come along with fedray.

A set with `parts` can be downloaded; one without is got by hand from `page` (a licence to accept, a form to fill in, or
a host that only serves browsers) and put into the set's folder as `layout` says. Addresses are those of torchvision's
and torchgeo's data set classes. Sizes and SHA-256 are published by TensorFlow Datasets (Apache-2.0); where those have
none, the MD5 of torchvision or torchgeo stands. An MD5 tells a damaged file as well as SHA-256 does, and nobody can yet
make a file to a given MD5, but it is the weaker promise: the SHA-256 of the first download is written down then, and
holds from there on.

Images are those that the papers use, training and test (and validation, where there is one) together.
"""

from __future__ import annotations

from typing import NamedTuple

from fedray.data.download import Part

FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
CIFAR = "https://www.cs.toronto.edu/~kriz"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"
COCO = "http://images.cocodataset.org"
TORCHGEO = "https://huggingface.co/datasets/torchgeo"
HUB = "https://huggingface.co/datasets"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"


class Origin(NamedTuple):
    """What there is to know of a data set before it is here."""

    classes: int
    images: int
    parts: tuple[Part, ...] = ()
    page: str = ""  # by hand: where from
    layout: str = ""  # by hand: what must lie in the set's folder
    size: int = 0  # bytes, about, where the parts don't say it
    also: tuple[str, ...] = ()  # what other programs call the folder, beside the set's own

    @property
    def download(self) -> int:
        """Bytes to download, about; 0 where nobody published it."""
        sizes = [part.size for part in self.parts]
        return sum(sizes) if sizes and all(sizes) else self.size


ALIAS = {"voc2007_ignore": "voc2007", "multifashion": "fashion"}
"""Sets that are made of the files of another."""

# fmt: off
ORIGINS: dict[str, Origin] = {
    # that come along
    "digits": Origin(10, 1_797),
    "colourdigits": Origin(18, 3_000),
    "multidigits": Origin(10, 3_000),
    "multifashion": Origin(20, 3_000),
    # single label
    "fashion": Origin(10, 70_000, (
        Part(f"{FASHION}/train-images-idx3-ubyte.gz", 26_421_880,
             "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", None),
        Part(f"{FASHION}/train-labels-idx1-ubyte.gz", 29_515,
             "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", None),
        Part(f"{FASHION}/t10k-images-idx3-ubyte.gz", 4_422_102,
             "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", None),
        Part(f"{FASHION}/t10k-labels-idx1-ubyte.gz", 5_148,
             "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", None),
    ), also=("FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")),
    "cifar10": Origin(10, 60_000, (
        Part(f"{CIFAR}/cifar-10-binary.tar.gz", 170_052_171,
             "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    )),
    "cifar100": Origin(100, 60_000, (
        Part(f"{CIFAR}/cifar-100-binary.tar.gz", 168_513_733,
             "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    )),
    "caltech101": Origin(100, 8_242, (
        Part("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip", 137_414_764,
             "sha256:331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
             inner=("caltech-101/101_ObjectCategories.tar.gz",)),
    ), also=("caltech-101",)),
    "dtd": Origin(47, 5_640, (
        Part(f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz", 625_239_812,
             "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205"),
    )),
    "eurosat": Origin(10, 27_000, (
        Part(f"{TORCHGEO}/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip", 94_280_567,
             "sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd"),
    )),
    "fgvc_aircraft": Origin(100, 10_000, (
        Part(f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", 2_770_575_360,
             "sha256:d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75"),
    ), also=("fgvc-aircraft-2013b",)),
    "flowers102": Origin(102, 8_189, (
        Part(f"{OXFORD}/flowers/102/102flowers.tgz", 344_862_509,
             "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"),
        Part(f"{OXFORD}/flowers/102/imagelabels.mat", 502,
             "sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d", None),
        Part(f"{OXFORD}/flowers/102/setid.mat", 14_989,
             "sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd", None),
    ), also=("oxford_flowers", "flowers-102")),
    "food101": Origin(101, 101_000, (
        Part("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", 4_996_278_331,
             "sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4"),
    ), also=("food-101",)),
    "pets": Origin(37, 7_349, (
        Part(f"{OXFORD}/pets/data/images.tar.gz", 791_918_971,
             "sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
        Part(f"{OXFORD}/pets/data/annotations.tar.gz", 19_173_078,
             "sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
    ), also=("oxford_pets", "oxford-iiit-pet")),
    "sun397": Origin(397, 39_700, (
        Part("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", 39_077_296_924,
             "sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec"),
        Part("https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip", 18_293_705,
             "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9"),
    )),
    "cars": Origin(196, 16_185, page="ai.stanford.edu/~jkrause/cars/car_dataset.html, gone; mirrors on Kaggle",
        layout="cars_train/*.jpg, cars_test/*.jpg, devkit/*.mat, cars_test_annos_withlabels.mat", size=1_957_000_000,
        also=("stanford_cars",)),
    "ucf101": Origin(101, 13_320, page="github.com/KaiyangZhou/CoOp, DATASETS.md",
        layout="UCF-101-midframes/<class>/*.jpg, ucfTrainTestlist/*.txt", size=600_000_000),
    "imagenet": Origin(1000, 1_331_167, page="image-net.org, after signing in",
        layout="train/<id>/*.JPEG and val/<id>/*.JPEG", size=155_000_000_000),
    "imagenetv2": Origin(1000, 10_000, (
        Part(f"{HUB}/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz", 1_264_079_360,
             "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c"),
    )),
    "imagenet_sketch": Origin(1000, 50_889, page="github.com/HaohanWang/ImageNet-Sketch",
        layout="sketch/<id>/*.JPEG", size=7_593_573_012, also=("imagenet-sketch",)),
    "imagenet_a": Origin(200, 7_500, (
        Part(f"{BERKELEY}/imagenet-a.tar", 687_552_512,
             "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e"),
    ), also=("imagenet-adversarial",)),
    "imagenet_r": Origin(200, 30_000, (
        Part(f"{BERKELEY}/imagenet-r.tar", 2_191_079_936,
             "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52"),
    ), also=("imagenet-rendition",)),
    # from above
    "optimal31": Origin(31, 1_860, page="its authors at CAS; links in several papers", layout="Images/<class>/*.jpg",
        size=25_000_000),
    "uc_merced": Origin(21, 2_100, (
        Part(f"{TORCHGEO}/ucmerced/resolve/main/UCMerced_LandUse.zip", 332_468_434,
             "sha256:06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb"),
    )),
    "resisc45": Origin(45, 31_500, (
        Part(f"{TORCHGEO}/resisc45/resolve/a826b44d938a883185f11ebe3d512d38b464312f/NWPU-RESISC45.zip", 0,
             "md5:75206b2e16446591afa88e2628744886"),
    ), size=400_000_000),
    # several domains
    "domainnet10": Origin(10, 0, page="ai.bu.edu/M3SDA (images and lists)",
        layout="<domain>/<class>/*, <domain>_train.txt, <domain>_test.txt; six domains", size=18_000_000_000),
    "office_caltech10": Origin(10, 2_533, page="github.com/med-air/FedBN (office_caltech_10)",
        layout="<domain>/<class>/*; amazon, caltech, dslr, webcam", size=60_000_000),
    "pacs": Origin(7, 9_991, page="domaingeneralization.github.io",
        layout="<domain>/<class>/*; art_painting, cartoon, photo, sketch", size=190_000_000),
    "vlcs": Origin(5, 10_729, page="github.com/facebookresearch/DomainBed",
        layout="<domain>/<class>/*; Caltech101, LabelMe, VOC2007, SUN09", size=3_600_000_000),
    "officehome": Origin(65, 15_588, page="hemanthdv.org/officeHomeDataset.html",
        layout="<domain>/<class>/*; Art, Clipart, Product, Real World", size=1_100_000_000),
    "terraincognita": Origin(10, 24_788, page="github.com/facebookresearch/DomainBed (its download script)",
        layout="location_<n>/<class>/*; 38, 43, 46, 100", size=6_000_000_000),
    # several labels
    "voc2007": Origin(20, 9_963, (
        Part(f"{VOC}/VOCtrainval_06-Nov-2007.tar", 460_032_000,
             "sha256:7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508"),
        Part(f"{VOC}/VOCtest_06-Nov-2007.tar", 451_020_800,
             "sha256:6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"),
    )),
    "coco2014": Origin(80, 122_218, (
        Part(f"{COCO}/annotations/annotations_trainval2014.zip", 252_872_794,
             "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
        Part(f"{COCO}/zips/train2014.zip", 13_510_573_713,
             "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
        Part(f"{COCO}/zips/val2014.zip", 6_645_013_297,
             "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    )),
    "nuswide": Origin(81, 269_648, page="lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html",
        layout="ImageList/, Groundtruth/TrainTestLabels/, Flickr/<concept>/*.jpg", size=7_000_000_000),
    "multiscene": Origin(36, 14_000, page="github.com/Hua-YS/Multi-Scene-Recognition (MultiScene-Clean)",
        layout="images/*.jpg, Tra.csv, Test.csv", size=1_000_000_000),
    "mlrsnet": Origin(60, 109_161, page="data.mendeley.com/datasets/7j9bv9vwsx",
        layout="Images/<scene>/*.jpg, Labels/<scene>.csv", size=1_300_000_000),
}
# fmt: on
