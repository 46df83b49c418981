#!/bin/sh
# The main job from nothing, on drawn images: noisy masks -> superpixels -> training -> comparison. A few minutes on two
# CPU cores. Safe to run again: what is done is kept, and a broken run goes on.
#
#     sh demo.sh
set -eu
cd "$(dirname "$0")"
requirements="requirements.txt"
. scripts/environment.sh
python=.venv/bin/python
data=data/phantom
noisy=$data/masks_200_0.2_0.05_0.2_mask_channel0

echo "== 1/4 drawn images of lesions with their clean masks: $data"
$python scripts/make_phantoms.py --save_root $data --train 160 --test 60 --image_size 256

echo "== 2/4 label noise S_R, which shrinks the training masks: $noisy"
$python scripts/generate_simulated_noise.py --gts_root $data/masks --save_root $noisy --theta1 0.2

train() {
    $python train_GSD-Net.py --datasets phantom --noise_type 02 --image_size 64 --max_epochs 30 \
        --batch_size 8 --resume --method "$1"
}
echo "== 3/4 cross-entropy on the noisy masks: model/phantom+ce+02"
train ce
echo "== 4/4 GSD-Net on the same masks, with the superpixels that it makes: model/phantom+gsd+02"
train gsd

echo
echo "== both runs, scored on clean test masks"
$python scripts/compare_runs.py model/phantom+ce+02 model/phantom+gsd+02 --figure model/phantom_comparison.png
