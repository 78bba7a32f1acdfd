"""The look of the HTML report: light, calm, printable, no scripts, nothing loaded from anywhere."""

STYLE = """
:root{--ink:#1b2733;--soft:#5b6875;--faint:#8a96a3;--line:#e1e6eb;--paper:#fff;--ground:#f4f6f8;--accent:#0b6e7f;--found:#eb6138;--expert:#2fc8f0;
 --good:#2b8a57;--part:#b7791f;--none:#b23b3b}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);\
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1360px;margin:0 auto;padding:28px 24px 48px}
h1{font-size:25px;line-height:1.25;font-weight:650;margin:0;letter-spacing:-.01em}
h2{font-size:18px;font-weight:640;margin:0}
h3{font-size:14px;font-weight:640;margin:0}
p{margin:0}
a{color:inherit}
h1,p,.facts span,.legend{overflow-wrap:anywhere}
.soft{color:var(--soft)}
.small{font-size:13px}
.num{font-variant-numeric:tabular-nums}
.note{margin:14px 0 0;padding:9px 14px;border-left:3px solid var(--part);background:#fdf7ea;border-radius:0 6px 6px 0;font-size:14px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:20px 0 0;\
background:var(--paper);border:1px solid var(--line);
 border-radius:10px;overflow:hidden}
.facts div{padding:12px 16px;box-shadow:0 0 0 1px var(--line)}
.facts b{display:block;font-size:21px;font-weight:620;line-height:1.3;font-variant-numeric:tabular-nums}
.facts span{font-size:13px;color:var(--soft)}
section{margin:26px 0 0;background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:18px 20px 20px}
.head{display:flex;flex-wrap:wrap;gap:4px 18px;align-items:baseline}
.coverage{display:flex;gap:9px;align-items:center;margin:8px 0 16px;font-size:14px}
.dot{flex:none;width:10px;height:10px;border-radius:50%;background:var(--none)}
.dot.good{background:var(--good)}.dot.part{background:var(--part)}
.board{display:grid;grid-template-columns:max(210px,min(262px,calc((100% - 40px)/(var(--n) + 1)))) 1fr;gap:18px;align-items:start}
.refs{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:18px 14px}
.board .refs{grid-template-columns:repeat(auto-fit,minmax(158px,1fr));max-width:calc(var(--n)*262px)}
.card{min-width:0}
.query{padding-right:18px;border-right:1px solid var(--line)}
.pic{display:block;position:relative;background:#000;border-radius:8px;overflow:hidden;cursor:zoom-in}
.pic{aspect-ratio:7/8}
.pic svg{display:block;width:100%;height:100%}
.pic i{position:absolute;font:600 12px/1 system-ui,sans-serif;color:#f2f5f7;text-shadow:0 0 3px #000,0 0 2px #000}
.pic i.l{left:7px;top:50%;transform:translateY(-50%)}.pic i.t{top:7px;left:50%;transform:translateX(-50%)}
.rank{position:absolute;left:7px;top:7px;min-width:23px;height:23px;padding:0 6px;border-radius:12px;\
background:rgba(255,255,255,.93);color:#16222d;
 font:650 13px/23px system-ui,sans-serif;text-align:center}
.pin{position:absolute;right:7px;top:7px;padding:0 8px;border-radius:11px;background:var(--accent);color:#fff;\
font:600 12px/22px system-ui,sans-serif}
.name{margin:9px 0 0;font-size:14px;font-weight:620;overflow-wrap:anywhere}
.id{font-size:12px;color:var(--faint);overflow-wrap:anywhere}
.scores{display:grid;grid-template-columns:auto 1fr auto;gap:3px 9px;align-items:center;margin:8px 0 0;font-size:13px}
.scores em{font-style:normal;color:var(--soft)}
.scores u{display:block;height:5px;border-radius:3px;background:#e8ecf0;text-decoration:none;overflow:hidden}
.scores u b{display:block;height:100%;background:var(--accent);border-radius:3px}
.scores strong{font-weight:600;font-variant-numeric:tabular-nums;text-align:right}
dl{margin:10px 0 0;font-size:13.5px;line-height:1.45}
dt{font-weight:620;color:var(--accent);font-size:12px;letter-spacing:.02em}
dd{margin:0 0 7px;overflow-wrap:anywhere}
.empty{border:1px dashed #cdd5dc;border-radius:10px;padding:26px 24px;color:var(--soft)}
.empty b{display:block;color:var(--ink);font-size:16px;margin-bottom:4px}
.gone{display:flex;align-items:center;justify-content:center;padding:34px 14px 14px;border-radius:8px;\
background:#eef1f4;cursor:default;color:var(--soft);font-size:13px;
 text-align:center}
details{margin:18px 0 0;border-top:1px solid var(--line);padding-top:12px}
summary{cursor:pointer;font-weight:620;font-size:14px}
table{border-collapse:collapse;width:100%;margin:8px 0 0;font-size:13.5px}
th{text-align:left;font-weight:600;color:var(--soft);font-size:12.5px}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
th{overflow-wrap:normal}td:first-child{min-width:7em}
td.id{white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}
.stage{white-space:nowrap;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:6px 22px;margin:14px 0 0;font-size:13.5px;color:var(--soft)}
.legend span::before{content:"";display:inline-block;width:18px;height:0;border-top:3px solid var(--c);\
border-radius:2px;margin-right:8px;vertical-align:middle}
.zoom{display:none;position:fixed;inset:0;z-index:9;background:rgba(10,14,18,.95);padding:28px;cursor:zoom-out}
.zoom:target{display:block}
.zoom svg{width:100%;height:100%}
.zoom a{position:absolute;inset:0;padding:28px}
footer{margin:26px 4px 0;font-size:13px;color:var(--soft)}
footer p+p{margin-top:6px}
@media(max-width:900px){.board{grid-template-columns:1fr}.query{padding:0;border:0;max-width:460px}main{padding:18px 14px 36px}}
@media print{details::details-content{content-visibility:visible;display:block;height:auto}\
body{background:#fff;font-size:11.5px}main{max-width:none;padding:0}section{border-color:#ccc;padding:12px 14px}
 .card,.facts,tr,.head,.coverage,.note{break-inside:avoid}.head,.coverage,dt{break-after:avoid}.zoom{display:none!important}
 .pic,.rank,.pin,.dot,.scores u,.scores b,.note,.legend span::before{-webkit-print-color-adjust:exact;print-color-adjust:exact}
 .board{grid-template-columns:1.2fr 4fr;gap:12px}.query{padding-right:12px;border-right:1px solid #ccc}\
.board .refs{grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;max-width:calc(var(--n)*210px)}
 dl{font-size:10.5px}@page{size:A4 landscape;margin:11mm}}
"""
