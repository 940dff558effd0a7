// Pictures and clips that the user gives: read, pictures made small enough to send, as data URLs.
import { Problem } from "/static/dom.js";

const LONGEST = 1280; // pixels of the longer side; models look at far fewer
const KEPT = 1_500_000; // bytes up to which a file is sent as it is
const CLIP = 20_000_000; // bytes of a clip, which is sent as it is

const asUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Problem("The picture could not be read."));
  reader.readAsDataURL(blob);
});

/** {name, url, width, height} of a file or blob: a data URL of the file itself if it is small, else of a smaller JPEG. */
export async function load(blob, name = blob.name || "pasted picture") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new Problem(`${name}: this browser cannot read it as a picture. JPEG, PNG, WebP and GIF work everywhere.`);
  }
  const { width, height } = bitmap;
  const longer = Math.max(width, height);
  if (["image/jpeg", "image/png", "image/webp"].includes(blob.type) && blob.size <= KEPT && longer <= 2 * LONGEST) {
    bitmap.close();
    return { name, url: await asUrl(blob), width, height };
  }
  const scale = Math.min(1, LONGEST / longer);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // what is transparent becomes white, as on paper
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { name, url: canvas.toDataURL("image/jpeg", 0.92), width: canvas.width, height: canvas.height };
}

/** The data URL of a part of a picture, [left, top, right, bottom] in 0..1. */
export async function cut(picture, [x0, y0, x1, y1]) {
  const image = new Image();
  image.src = picture.url;
  await image.decode();
  const { naturalWidth: w, naturalHeight: h } = image, canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round((x1 - x0) * w));
  canvas.height = Math.max(1, Math.round((y1 - y0) * h));
  canvas.getContext("2d").drawImage(image, x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** A picture of the index, by id, as `load` gives it. */
export async function loadId(id, name = `picture ${id}`) {
  const answer = await fetch(`/picture/${id}`, { credentials: "same-origin" });
  if (!answer.ok) throw new Problem(`${name}: the server no longer has it (status ${answer.status}).`, answer.status);
  return { ...(await load(await answer.blob(), name)), id };
}

/** {name, url, clip, width, height} of a clip: `clip` is the data URL of the file, `url` that of a still of it. */
export async function loadClip(blob, name = blob.name || "clip") {
  if (blob.size > CLIP) throw new Problem(`${name}: ${Math.ceil(blob.size / 1e6)} MB; a clip may have ${CLIP / 1e6} MB.`);
  const clip = await asUrl(blob);
  return { name, clip, ...(await still(clip)) };
}

/** A frame of a clip as a picture; a plain one, if this browser cannot play it. */
async function still(url) {
  const canvas = document.createElement("canvas"), film = document.createElement("video");
  film.muted = true;
  film.preload = "auto";
  const there = await new Promise((resolve) => {
    film.onloadeddata = () => resolve(true);
    film.onerror = () => resolve(false);
    setTimeout(() => resolve(false), 4000);
    film.src = url;
  });
  const scale = there ? Math.min(1, LONGEST / 2 / Math.max(film.videoWidth, film.videoHeight)) : 1;
  canvas.width = there ? Math.max(1, Math.round(film.videoWidth * scale)) : 160;
  canvas.height = there ? Math.max(1, Math.round(film.videoHeight * scale)) : 90;
  const pen = canvas.getContext("2d"), { width, height } = canvas, side = Math.min(width, height) / 5;
  pen.fillStyle = "#444";
  pen.fillRect(0, 0, width, height);
  if (there) pen.drawImage(film, 0, 0, width, height);
  pen.fillStyle = "#fff";
  pen.strokeStyle = "#000";
  pen.beginPath(); // the sign of something that plays
  pen.moveTo(width / 2 - side / 2, height / 2 - side / 1.6);
  pen.lineTo(width / 2 + side / 1.5, height / 2);
  pen.lineTo(width / 2 - side / 2, height / 2 + side / 1.6);
  pen.closePath();
  pen.fill();
  pen.stroke();
  film.removeAttribute("src");
  return { url: canvas.toDataURL("image/jpeg", 0.9), width, height };
}
